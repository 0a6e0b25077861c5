# shellcheck shell=bash
# Faults on real nodes. Sourced by tests/run.

# The others (power cut, cut links of the controller, slow link, full disk) have not yet been seen to pass on a busy
# machine; AO_FAULTS_FILTER=faults:: runs all.
FAULT_TESTS=(
  faults::api_outage faults::deadlines faults::fence faults::follow_resumes faults::gateway_restart faults::leadership
  faults::nodes faults::deck faults::lost_node::f12 faults::partitions::f15
)

stage_faults() {
  cluster_for faults || return 0
  (
    eval "$(deploy/local/env)"
    export AO_REQUIRE_CLUSTER=1
    [[ -z ${AO_FAULTS_FILTER:-} ]] || FAULT_TESTS=("$AO_FAULTS_FILTER")
    # What was broken and what the witnesses counted is worth a line also when all went well.
    cargo_tests faults --test e2e -- --include-ignored --test-threads=1 --nocapture "${FAULT_TESTS[@]}"
  )
  # Whatever a test could not mend, since it was killed at its limit.
  deploy/local/part heal || note faults failed 1
  cluster_failed faults
}
