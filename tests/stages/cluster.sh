# shellcheck shell=bash
# What the stages on real nodes share. Sourced by tests/run.

# What is needed to understand a failure, taken before the cluster goes.
collect_logs() {
  local folder
  folder=$AO_STATE/logs/e2e-$(date +%Y%m%d-%H%M%S)
  mkdir -p "$folder"
  {
    kubectl get nodes,pods -A -o wide >"$folder/pods.txt"
    kubectl get events -A --sort-by=.lastTimestamp >"$folder/events.txt"
    kubectl get codingtasks,agentruns -A -o yaml >"$folder/agents.yaml"
    kubectl get pods -n agent-operator-system -o name | while read -r pod; do
      kubectl logs -n agent-operator-system "$pod" --all-containers --prefix --timestamps >>"$folder/system.log"
      kubectl logs -n agent-operator-system "$pod" --all-containers --prefix --timestamps --previous >>"$folder/system-previous.log"
    done
  } 2>"$folder/collect.err" || true
  log "logs of the failed run: $folder"
  tail -n 60 "$folder/system.log" 2>/dev/null || true
  cat "$folder/pods.txt" 2>/dev/null || true
}

# cluster_for STAGE: the cluster with the present images and chart, or a note of why not.
cluster_for() {
  if [[ $(id -u) -ne 0 ]]; then
    log "$1 needs root: skipped"
    note "$1" skipped 1
    return 1
  fi
  if [[ -z $cluster_was_up ]]; then
    cluster_was_up=no
    ! deploy/local/part pid kubelet-a >/dev/null 2>&1 || cluster_was_up=yes
  fi
  # The scripted model server is what the tests steer; a real key must not be spent by them.
  unset ANTHROPIC_API_KEY
  deploy/local/up || {
    note "$1" failed 1
    return 1
  }
}

# cluster_failed STAGE: keeps the logs of a stage in which something failed.
cluster_failed() {
  if [[ $(count "$1" failed) -gt 0 ]]; then (eval "$(deploy/local/env)" && collect_logs) || true; fi
}
