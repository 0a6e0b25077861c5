# shellcheck shell=bash
# The life of a release on real nodes: install, look, upgrade, mend, remove. Sourced by tests/run.

stage_life() {
  cluster_for life || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    cargo_tests life --test e2e -- --include-ignored --test-threads=1 "${AO_LIFE_FILTER:-life::}"
  )
  cluster_failed life
}
