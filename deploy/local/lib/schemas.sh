# shellcheck shell=bash
# JSON schemas of every supported Kubernetes, made from the API description in its own source, and the chart held
# against them. Sourced, never run; needs common.sh and tools.sh.

# One release of each minor from Chart.yaml's kubeVersion to what deploy/local runs.
SCHEMA_VERSIONS=(1.33.4 1.34.4 1.35.4 "$KUBERNETES_VERSION")

schema_folder() { printf '%s/schemas/kubernetes-%s' "$AO_CACHE" "$1"; }

# strict_definitions: an API description to strict JSON schemas, as the API server takes objects with
# fieldValidation=Strict.
strict_definitions() {
  jq -c '
    # A field that is not described is an error.
    def strict:
      if type == "array" then map(strict)
      elif type != "object" then .
      elif .format == "int-or-string" then {type: ["string", "integer"]}
      else
        (if has("properties") and (has("additionalProperties") | not) then .additionalProperties = false else . end)
        | map_values(strict)
      end;
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

# make_schemas VERSION FOLDER
make_schemas() {
  local version=$1 folder=$2 modules=$2.modules source file definition
  mkdir -p "$folder"
  # A module cache of its own, thrown away at the end: of 130 MB one file is wanted. What the usual cache has is used.
  source=$(
    cd "$AO_CACHE" || exit
    export GOPROXY GOMODCACHE=$modules GOFLAGS=-modcacherw
    GOPROXY="file://$(GOMODCACHE='' go env GOMODCACHE)/cache/download,$(go env GOPROXY)"
    go_quiet mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p'
  )/api/openapi-spec/swagger.json
  strict_definitions <"$source" >"$folder/_definitions.json"
  kinds <"$source" | while IFS=$'\t' read -r file definition; do
    printf '{"$ref":"_definitions.json#/definitions/%s"}\n' "$definition" >"$folder/$file.json"
  done
  rm -rf "$modules"
  [[ -s $folder/_definitions.json && -s $folder/daemonset-apps-v1.json ]]
}

# ensure_schemas: makes what the cache lacks.
ensure_schemas() {
  local version folder try
  mkdir -p "$AO_CACHE/schemas" "$AO_CACHE/log"
  for version in "${SCHEMA_VERSIONS[@]}"; do
    folder=$(schema_folder "$version")
    [[ ! -d $folder ]] || continue
    require_go
    log "schemas of Kubernetes $version"
    for try in 1 2 3; do
      rm -rf "$folder".tmp.*
      # `set -e` does not work under a condition; the last line of make_schemas looks at the result.
      if make_schemas "$version" "$folder.tmp.$$" 2>"$AO_CACHE/log/schemas-$version.log"; then break; fi
      ((try < 3)) || die "no schemas of Kubernetes $version" "see $AO_CACHE/log/schemas-$version.log"
      sleep 5
    done
    mv "$folder.tmp.$$" "$folder"
  done
}

# conforms VERSION FILE...: whether all objects are what that Kubernetes takes. ServiceMonitors and
# PrometheusRules are not its own.
conforms() {
  kubeconform -strict -skip ServiceMonitor,PrometheusRule -kubernetes-version "$1" \
    -schema-location "$(schema_folder "$1")/{{ .ResourceKind }}{{ .KindSuffix }}.json" "${@:2}"
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
  sed 's/^  replicas: 1$/  replicas: one/' "$folder/null.yaml" >"$name-type.yaml"
  for name in "$name-field.yaml" "$name-type.yaml"; do
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
