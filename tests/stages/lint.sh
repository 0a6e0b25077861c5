# shellcheck shell=bash
# What can be said of the sources, scripts and manifests without running them. Sourced by tests/run.

# linter NAME COMMAND...: one linter is one case.
linter() {
  local name=$1
  shift
  log "lint: $name"
  if "$@"; then note lint passed 1; else
    log "lint: $name FAILED"
    note lint failed 1
  fi
}

scripts() {
  git ls-files -co --exclude-standard deploy tests .ci | while read -r file; do
    [[ ! -f $file ]] || ! head -n 2 "$file" | grep -qE '^#!.*(bash|/sh)|shellcheck shell=' || echo "$file"
  done
}

check_scripts() {
  local files
  mapfile -t files < <(scripts)
  # Constants of a sourced file look unused to it (SC2034), and single quotes are often meant (SC2016).
  shellcheck --severity=warning --exclude=SC2034,SC1091,SC2016 "${files[@]}"
}

CHART=deploy/helm/agent-operator
# Beside the defaults, what the chart is rendered with.
CHART_VALUES=(deploy/local/values.yaml tests/chart/everything.yaml)

check_chart() {
  local values
  for values in /dev/null "${CHART_VALUES[@]}"; do
    helm lint --quiet --strict "$CHART" --values "$values" || return 1
  done
  check_old_kubernetes "$CHART"
}

check_schemas() { (ensure_schemas) && check_chart_schemas "$CHART" "${CHART_VALUES[@]}"; }

# Workflows, and the scripts in them.
check_workflows() {
  local planted
  actionlint || return 1
  # A check that never fails checks nothing.
  planted=$(sed 's/runs-on: ubuntu/runs_on: ubuntu/' .github/workflows/ci.yml)
  ! actionlint - <<<"$planted" >/dev/null
}

# By cargo-deny, where it has been built: that takes some minutes, so `just deny` does it, and CI has a job of its own.
check_dependencies() {
  local status=0
  tests/deny --built || status=$?
  if ((status == 3)); then
    log "lint: dependencies skipped: cargo-deny is not built; tests/deny builds it once"
    note lint skipped 1
  elif ((status == 4)); then
    log "lint: dependencies: licences, duplicates and sources passed; advisories SKIPPED: their database cannot be reached"
    note lint passed 1
    note lint skipped 1
  elif ((status)); then
    log "lint: dependencies FAILED"
    note lint failed 1
  else
    note lint passed 1
  fi
}

stage_lint() {
  (apt_install shellcheck jq && ensure_tools helm kubeconform actionlint) || true
  linter rustfmt cargo fmt --all --check
  linter clippy nice -n 5 cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
  if command -v shellcheck >/dev/null; then linter shellcheck check_scripts; else note lint skipped 1; fi
  linter workflows check_workflows
  check_dependencies
  linter helm check_chart
  linter schemas check_schemas
}
