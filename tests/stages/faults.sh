# shellcheck shell=bash
# Faults on real nodes. Sourced by tests/run.

# What has been seen to pass. The others (slow link, full disk, volume, wall clock) are run by their names, or all by
# AO_FAULTS_FILTER=faults::.
FAULT_TESTS=(
  faults::api_outage faults::deadlines faults::fence faults::follow_resumes faults::gateway_frozen faults::gateway_restart
  faults::leadership faults::nodes faults::deck faults::lost_node faults::partitions
)

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
