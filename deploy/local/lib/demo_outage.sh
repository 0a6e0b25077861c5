# shellcheck shell=bash
# `deploy/local/demo --fault controller-outage`: the controller is stopped in the middle of two steps. Sourced by demo,
# whose helpers (title, show_events, forget_tasks, ...) it uses.

OUTAGE_WORKS=outage-works
OUTAGE_HANGS=outage-hangs
# Seconds: how long the one step works, and after which the other one is ended by its node.
OUTAGE_ROWS=45
OUTAGE_TIMEOUT=40
# The order to stop, the grace that the chart gives (10s), and a second.
OUTAGE_LATEST=$((OUTAGE_TIMEOUT + 11))
CONTROLLER=deployment/$RELEASE-controller

# outage_task NAME STEP-TIMEOUT RETRIES SCRIPT: its agent is a shell command, so that one sees what it does when.
outage_task() {
  cat <<YAML
---
apiVersion: agents.wearn.dev/v1alpha1
kind: CodingTask
metadata: {name: $1, namespace: $TASK_NAMESPACE}
spec:
  source: {type: chat, chat: {sessionId: demo, userId: demo}}
  repository: {url: https://github.com/jcwearn/example-repo.git, branch: main}
  prompt: "Outlast the controller."
  anthropicApiKeyRef: {name: agent-secrets, key: anthropic-api-key}
  gitCredentialsRef: {name: agent-secrets, key: github-token}
  stepTimeout: ${2}s
  maxRetries: $3
  test: {command: [test, -s, outage.txt]}
  agent: {type: Command, command: [sh, -c, '$4']}
YAML
}

outage_tasks() {
  # shellcheck disable=SC2016
  outage_task "$OUTAGE_WORKS" 300 1 '[ "$AGENT_STEP" = plan ] || { date > outage.txt; exit 0; }; i=1; while [ $i -le '"$OUTAGE_ROWS"' ]; do echo "row $i of '"$OUTAGE_ROWS"'"; i=$((i+1)); sleep 1; done'
  outage_task "$OUTAGE_HANGS" "$OUTAGE_TIMEOUT" 0 'echo "this step would take an hour"; sleep 3600'
}

# run_field TASK JSONPATH: of the task's first run.
run_field() {
  kubectl get agentruns -n "$TASK_NAMESPACE" --field-selector "spec.taskRef.name=$1" \
    -o "jsonpath={.items[?(@.spec.step==\"plan\")]$2}"
}

plan_runs() { [[ $(run_field "$1" .status.phase) == Running ]]; }

# Empty while the container runs.
ended_at() {
  kubectl get pod -n "$TASK_NAMESPACE" "$1" \
    -o 'jsonpath={.status.containerStatuses[?(@.name=="agent")].state.terminated.finishedAt}' 2>/dev/null
}
has_ended() { [[ -n $(ended_at "$1") ]]; }

controller_pods() {
  kubectl get pods -n "$RELEASE_NAMESPACE" -l app.kubernetes.io/component=controller -o name
}
controller_gone() { [[ -z $(controller_pods) ]]; }

seconds_between() { echo $(($(date -d "$2" +%s) - $(date -d "$1" +%s))); }

task_ended() {
  [[ $(kubectl get codingtask -n "$TASK_NAMESPACE" "$1" -o 'jsonpath={.status.conditions[?(@.type=="Finished")].status}') == True ]]
}

outage_replicas=''
outage_restore() {
  [[ -z $outage_replicas ]] || kubectl scale -n "$RELEASE_NAMESPACE" "$CONTROLLER" --replicas="$outage_replicas" >/dev/null
}

outage_start() {
  title "2/6 two tasks: a step that works for $OUTAGE_ROWS s, and one that never ends but may take $OUTAGE_TIMEOUT s"
  forget_tasks "$OUTAGE_WORKS" "$OUTAGE_HANGS"
  outage_tasks | kubectl apply -f -
  local name
  for name in "$OUTAGE_HANGS" "$OUTAGE_WORKS"; do
    wait_or_die 120 "the first step of $name" "kubectl describe codingtask -n $TASK_NAMESPACE $name" plan_runs "$name"
  done
  works_pod=$(run_field "$OUTAGE_WORKS" .status.podName)
  hangs_pod=$(run_field "$OUTAGE_HANGS" .status.podName)
  kubectl get agentruns -n "$TASK_NAMESPACE" -o wide | grep -E "NAME|outage-"
}

outage_stop_controller() {
  title "3/6 the controller is stopped in mid-step: kubectl scale $CONTROLLER --replicas=0"
  outage_replicas=$(kubectl get -n "$RELEASE_NAMESPACE" "$CONTROLLER" -o 'jsonpath={.spec.replicas}')
  kubectl scale -n "$RELEASE_NAMESPACE" "$CONTROLLER" --replicas=0
  wait_or_die 60 "the end of the controller" "kubectl get pods -n $RELEASE_NAMESPACE" controller_gone
  stopped_at=$(date -u +%FT%TZ)
  echo "no controller since $stopped_at"
}

outage_watch_nodes() {
  title "4/6 the nodes go on alone: the log of the step, and both ends"
  kubectl logs -n "$TASK_NAMESPACE" -f "$works_pod" | grep --line-buffered '^row' || true
  wait_or_die 120 "the end of the step that works" "kubectl get pods -n $TASK_NAMESPACE" has_ended "$works_pod"
  wait_or_die 120 "the end of the step that hangs" "kubectl get pods -n $TASK_NAMESPACE" has_ended "$hangs_pod"
  echo "ended at $(ended_at "$works_pod") by itself:               $works_pod"
  echo "ended at $(ended_at "$hangs_pod") by its node's supervisor: $hangs_pod"
  echo "and nobody has written that down in the cluster yet:"
  kubectl get agentruns -n "$TASK_NAMESPACE" | grep -E "NAME|outage-"
}

outage_bring_back() {
  title "5/6 the controller is back, and the nodes tell it what became of their steps"
  outage_restore
  outage_replicas=''
  back_at=$(date -u +%FT%TZ)
  echo "the controller was away for $(seconds_between "$stopped_at" "$back_at") s"
  local name
  for name in "$OUTAGE_WORKS" "$OUTAGE_HANGS"; do
    wait_or_die 180 "the end of $name" "kubectl describe codingtask -n $TASK_NAMESPACE $name" task_ended "$name"
  done
  kubectl get agentruns -n "$TASK_NAMESPACE" | grep -E "NAME|outage-"
}

# outage_check WHAT EXPECTED FOUND
outage_check() {
  [[ $2 == "$3" ]] || die "$1: $3 instead of $2" "kubectl get codingtasks,agentruns,pods -n $TASK_NAMESPACE"
  printf '  %-62s %s\n' "$1" "$3"
}

outage_show() {
  title "6/6 nothing was lost"
  local events rows took steps number
  outage_check "the step that worked" "Succeeded 0" "$(run_field "$OUTAGE_WORKS" .status.phase) $(run_field "$OUTAGE_WORKS" .status.exitCode)"
  outage_check "the step that hung" "Failed TimedOut" "$(run_field "$OUTAGE_HANGS" .status.phase) $(run_field "$OUTAGE_HANGS" .status.reason)"
  took=$(seconds_between "$(run_field "$OUTAGE_HANGS" .status.startTime)" "$(run_field "$OUTAGE_HANGS" .status.completionTime)")
  outage_check "it had $OUTAGE_TIMEOUT s, and was ended within $OUTAGE_LATEST s by its node alone" yes \
    "$( ((took >= OUTAGE_TIMEOUT && took <= OUTAGE_LATEST)) && echo yes || echo "after $took s")"
  events=$(follow_task "$OUTAGE_WORKS") || die "the log could not be read" "grpcurl answers on $AO_GRPC?"
  rows=$(jq -r '.log.text // empty | select(startswith("row ")) | split(" ")[1]' <<<"$events" | tr '\n' ' ')
  outage_check "its log, by grpcurl: rows once and in order" "$(seq -s ' ' "$OUTAGE_ROWS") " "$rows"
  outage_check "gaps in it" 0 "$(jq -r 'select(.gap) | .gap' <<<"$events" | grep -c . || true)"
  steps=$(kubectl get agentruns -n "$TASK_NAMESPACE" --field-selector "spec.taskRef.name=$OUTAGE_WORKS" -o name | wc -l)
  outage_check "runs of the task, one a step" 4 "$steps"
  outage_check "the task" Complete "$(kubectl get codingtask -n "$TASK_NAMESPACE" "$OUTAGE_WORKS" -o 'jsonpath={.status.phase}')"
  number=$(kubectl get codingtask -n "$TASK_NAMESPACE" "$OUTAGE_WORKS" -o 'jsonpath={.status.pullRequest.number}')
  outage_check "its pull requests" "#$number" \
    "$(forge_api GET "/repos/$FORGE_OWNER/$FORGE_REPOSITORY/pulls?state=open&limit=50" |
      jq -r --arg branch "ai/$OUTAGE_WORKS" '[.[] | select(.head.ref | startswith($branch)) | "#\(.number)"] | join(" ")')"
}

demo_outage() {
  outage_start
  outage_stop_controller
  outage_watch_nodes
  outage_bring_back
  outage_show
}
