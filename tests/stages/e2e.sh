# shellcheck shell=bash
# A whole task on real nodes. Sourced by tests/run.

stage_e2e() {
  cluster_for e2e || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    cargo_tests e2e --test claude -- --include-ignored
    cargo_tests e2e --lib -- --ignored gateway::forge::tests::real
    cargo_tests e2e --test e2e -- --include-ignored --test-threads="${AO_E2E_THREADS:-3}" \
      "${AO_E2E_FILTER:-scenarios::}"
    # A process is taken away from everybody: these run alone, and last.
    [[ -n ${AO_E2E_FILTER:-} ]] || cargo_tests e2e --test e2e -- --include-ignored --test-threads=1 kill_points::
  )
  cluster_failed e2e
}
