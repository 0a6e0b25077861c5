# shellcheck shell=bash
# A hostile agent on real nodes. Sourced by tests/run.

stage_hostile() {
  # Needs no cluster, and the nodes' container runtime finds them when they are there.
  if [[ $(id -u) -eq 0 ]] && ! (ensure_tools "${RUNTIME_TOOLS[@]}"); then
    note hostile failed 1
  fi
  cluster_for hostile || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    # The table of what was tried is worth its lines also when all was held off.
    cargo_tests hostile --test e2e -- --include-ignored --test-threads="${AO_HOSTILE_THREADS:-2}" --nocapture \
      "${AO_HOSTILE_FILTER:-hostile::}"
  )
  cluster_failed hostile
}
