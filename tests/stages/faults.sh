# shellcheck shell=bash
# Faults on real nodes. Sourced by tests/run.

# All of them, and none of scenarios::start_faults; AO_FAULTS_FILTER names others.
FAULT_TESTS=(faults:: --skip scenarios::)

stage_faults() {
  cluster_for faults || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    [[ -z ${AO_FAULTS_FILTER:-} ]] || read -ra FAULT_TESTS <<<"$AO_FAULTS_FILTER"
    # What was broken and what the witnesses counted is worth a line also when all went well.
    cargo_tests faults --test e2e -- --include-ignored --test-threads=1 --nocapture "${FAULT_TESTS[@]}"
  )
  # Whatever a test could not mend, since it was killed at its limit.
  deploy/local/part heal || note faults failed 1
  cluster_failed faults
}
