# shellcheck shell=bash
# A hostile agent on real nodes. Sourced by tests/run.

# Compares what the whole gateway has counted with what its own attacks were told: runs alone.
COUNTING=hostile::refusals

stage_hostile() {
  # Needs no cluster, and the nodes' container runtime finds them when they are there.
  if [[ $(id -u) -eq 0 ]] && ! (ensure_tools "${RUNTIME_TOOLS[@]}"); then
    note hostile failed 1
  fi
  cluster_for hostile || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    if [[ -n ${AO_HOSTILE_FILTER:-} ]]; then
      hostile_tests 1 "$AO_HOSTILE_FILTER"
    else
      hostile_tests "${AO_HOSTILE_THREADS:-2}" hostile:: --skip "$COUNTING"
      hostile_tests 1 "$COUNTING"
    fi
  )
  cluster_failed hostile
}

# hostile_tests THREADS NAME...: the table of what was tried is worth its lines also when all was held off.
hostile_tests() {
  cargo_tests hostile --test e2e -- --include-ignored --test-threads="$1" --nocapture "${@:2}"
}
