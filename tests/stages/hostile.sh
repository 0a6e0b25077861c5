# shellcheck shell=bash
# A hostile agent on real nodes. Sourced by tests/run.

stage_hostile() {
  cluster_for hostile || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    # The table of what was tried is worth its lines also when all was held off.
    cargo_tests hostile --test e2e -- --include-ignored --test-threads=1 --nocapture "${AO_HOSTILE_FILTER:-hostile::}"
  )
  cluster_failed hostile
}
