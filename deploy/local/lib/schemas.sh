# shellcheck shell=bash
# JSON schemas of every supported Kubernetes, made from the API description in its own source, and of what the chart has
# for the Prometheus operator, made from that one's definitions; and the chart held against them. Sourced, never run;
# needs common.sh and tools.sh.

# One release of each minor from Chart.yaml's kubeVersion to what deploy/local runs.
SCHEMA_VERSIONS=(1.33.4 1.34.4 1.35.4 "$KUBERNETES_VERSION")

# Kinds of the Prometheus operator that the chart may render.
MONITORING_KINDS=(ServiceMonitor PrometheusRule)

schema_folder() { printf '%s/schemas/kubernetes-%s' "$AO_CACHE" "$1"; }
monitoring_folder() { printf '%s/schemas/prometheus-operator-%s' "$AO_CACHE" "$PROMETHEUS_OPERATOR_VERSION"; }

# A field that is not described is an error, as with fieldValidation=Strict at the API server.
STRICT='
  def strict:
    if type == "array" then map(strict)
    elif type != "object" then .
    elif .format == "int-or-string" or .["x-kubernetes-int-or-string"] == true then {type: ["string", "integer"]}
    else
      (if has("properties") and (has("additionalProperties") | not) then .additionalProperties = false else . end)
      | map_values(strict)
    end;'

# strict_definitions: an API description to strict JSON schemas.
strict_definitions() {
  jq -c "$STRICT"'
    .definitions
    # The API server reads a bare number as a quantity as well.
    | .["io.k8s.apimachinery.pkg.api.resource.Quantity"].type = ["string", "number"]
    | {definitions: map_values(strict)}'
}

# kinds: file name and definition of each kind, by the names that kubeconform looks for.
kinds() {
  jq -r '
    .definitions | to_entries[]
    | select(.value["x-kubernetes-group-version-kind"] | length == 1)
    | .value["x-kubernetes-group-version-kind"][0] as $kind
    | [([$kind.kind, ($kind.group | split(".")[0] // ""), $kind.version] | map(select(. != "")) | join("-") | ascii_downcase), .key]
    | @tsv'
}

# module_sources MODULE@VERSION FOLDER: the folder with its sources. It is in a module cache of its own, to be thrown away:
# of a hundred megabytes one file is wanted. What the usual cache has is used.
module_sources() {
  cd "$AO_CACHE" || exit
  export GOPROXY GOMODCACHE=$2 GOFLAGS=-modcacherw
  GOPROXY="file://$(GOMODCACHE='' go env GOMODCACHE)/cache/download,$(go env GOPROXY)"
  go_quiet mod download -json "$1" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p'
}

# make_monitoring_schemas VERSION FOLDER: a definition's own schema, strict, under the name that kubeconform looks for.
make_monitoring_schemas() {
  local version=$1 folder=$2 modules=$2.modules source kind chart=$2.chart
  mkdir -p "$folder" "$chart/templates"
  source=$(module_sources "github.com/prometheus-operator/prometheus-operator@v$version" "$modules")
  # The definitions are YAML, and jq reads JSON: Helm, which is here, turns one into the other.
  printf 'apiVersion: v2\nname: convert\nversion: 0.0.0\n' >"$chart/Chart.yaml"
  printf '# {{ .Files.Get "definition.yaml" | fromYaml | toJson }}\n' >"$chart/templates/definition.yaml"
  for kind in "${MONITORING_KINDS[@]}"; do
    cp "$source/example/prometheus-operator-crd/monitoring.coreos.com_${kind,,}s.yaml" "$chart/definition.yaml"
    helm template convert "$chart" | sed -n 's/^# {"/{"/p' |
      jq -c "$STRICT"' .spec.versions[] | select(.name == "v1").schema.openAPIV3Schema
        # These three are described by Kubernetes, and not again in each definition.
        | .properties |= (strict | .metadata = {type: "object"}) | .additionalProperties = false' \
        >"$folder/${kind,,}-monitoring-v1.json"
  done
  rm -rf "$modules" "$chart"
  [[ -s $folder/servicemonitor-monitoring-v1.json && -s $folder/prometheusrule-monitoring-v1.json ]]
}

# make_schemas VERSION FOLDER
make_schemas() {
  local version=$1 folder=$2 modules=$2.modules source file definition
  mkdir -p "$folder"
  source=$(module_sources "k8s.io/kubernetes@v$version" "$modules")/api/openapi-spec/swagger.json
  strict_definitions <"$source" >"$folder/_definitions.json"
  kinds <"$source" | while IFS=$'\t' read -r file definition; do
    printf '{"$ref":"_definitions.json#/definitions/%s"}\n' "$definition" >"$folder/$file.json"
  done
  rm -rf "$modules"
  [[ -s $folder/_definitions.json && -s $folder/daemonset-apps-v1.json ]]
}

# ensure_schema WHAT MAKE VERSION FOLDER: makes it with MAKE unless the cache has it.
ensure_schema() {
  local what=$1 make=$2 version=$3 folder=$4 try
  [[ ! -d $folder ]] || return 0
  require_go
  log "schemas of $what $version"
  for try in 1 2 3; do
    rm -rf "$folder".*
    # `set -e` does not work under a condition; the last line of each maker looks at the result.
    if "$make" "$version" "$folder.tmp" 2>"$AO_CACHE/log/schemas-$version.log"; then break; fi
    ((try < 3)) || die "no schemas of $what $version" "see $AO_CACHE/log/schemas-$version.log"
    sleep 5
  done
  mv "$folder.tmp" "$folder"
}

# ensure_schemas: makes what the cache lacks.
ensure_schemas() {
  local version
  mkdir -p "$AO_CACHE/schemas" "$AO_CACHE/log"
  for version in "${SCHEMA_VERSIONS[@]}"; do
    ensure_schema Kubernetes make_schemas "$version" "$(schema_folder "$version")"
  done
  ensure_schema "the Prometheus operator" make_monitoring_schemas "$PROMETHEUS_OPERATOR_VERSION" "$(monitoring_folder)"
}

# conforms VERSION FILE...: whether all objects are what that Kubernetes takes.
conforms() {
  local folder schemas=()
  for folder in "$(schema_folder "$1")" "$(monitoring_folder)"; do
    schemas+=(-schema-location "$folder/{{ .ResourceKind }}{{ .KindSuffix }}.json")
  done
  kubeconform -strict -kubernetes-version "$1" "${schemas[@]}" "${@:2}"
}

# check_chart_schemas CHART VALUES...: the chart with its defaults and with each file of values, on every version. No
# template asks for the version, so each is rendered once.
check_chart_schemas() {
  local chart=$1 folder version values name bad=0
  shift
  folder=$(mktemp -d)
  for values in /dev/null "$@"; do
    name=$folder/$(basename "$values" .yaml).yaml
    helm template check "$chart" --namespace somewhere --values "$values" >"$name" || bad=1
  done
  for version in "${SCHEMA_VERSIONS[@]}"; do
    conforms "$version" "$folder"/*.yaml || { log "$chart is not valid on Kubernetes $version"; bad=1; }
  done
  # A check that never fails checks nothing: a field of the wrong name and a value of the wrong type must be found.
  name=$folder/planted
  sed 's/^\( *\)enableServiceLinks: false$/\1enableServiceLink: false/' "$folder/null.yaml" >"$name-field.yaml"
  sed 's/^  replicas: [0-9]*$/  replicas: one/' "$folder/null.yaml" >"$name-type.yaml"
  sed 's/{port: metrics, path: /{port: metrics, paths: /' "$folder/everything.yaml" >"$name-monitor.yaml"
  for name in "$name-field.yaml" "$name-type.yaml" "$name-monitor.yaml"; do
    ! conforms "$version" "$name" >/dev/null || { log "the schemas do not find what is wrong in $name"; bad=1; }
  done
  rm -rf "$folder"
  return "$bad"
}

# check_old_kubernetes CHART: versions below the least one are refused, with a sentence that names it.
check_old_kubernetes() {
  local words
  words=$(helm template check "$1" --kube-version 1.32.9 2>&1 >/dev/null) && return 1
  [[ $words == *">=1.33"* && $words == *1.32.9* ]] || { log "unclear refusal of an old Kubernetes: $words"; return 1; }
}
