# shellcheck shell=bash
# Installs the chart, makes the secret that the sample task names, and waits until everything runs.

CHART=$AO_REPO/deploy/helm/agent-operator
RELEASE=agent-operator
RELEASE_NAMESPACE=agent-operator-system
TASK_NAMESPACE=agent-system
# The one file that `env` names for the CA of the controller's gRPC port.
GRPC_CA=$AO_STATE/grpc-ca.crt

chart_install() {
  local name set=()
  [[ -f $CHART/Chart.yaml ]] || die "there is no chart at $CHART" "check out the whole repository"
  for name in controller supervisor runner agent; do set+=(--set-string "images.$name=$(image_reference "$name")"); done
  log "installing the chart"
  helm --kubeconfig "$1" upgrade --install "$RELEASE" "$CHART" --namespace "$RELEASE_NAMESPACE" --create-namespace \
    --values "$2" --set-string "llm.baseURL=$(model_base_url)" "${set[@]}" "${@:3}" >"$AO_LOGS/helm.log" 2>&1 || {
    tail -n 20 "$AO_LOGS/helm.log" >&2
    die "helm could not install the chart" "see $AO_LOGS/helm.log; helm lint $CHART checks the chart alone"
  }
}

chart_secret() {
  local kubeconfig=$1 key=${ANTHROPIC_API_KEY:-scripted-model-needs-no-key} token=$2
  # By standard input, never by argument: command lines are public.
  jq -n --arg key "$key" --arg token "$token" --arg namespace "$TASK_NAMESPACE" '{
    apiVersion: "v1", kind: "Secret", metadata: {name: "agent-secrets", namespace: $namespace},
    stringData: {"anthropic-api-key": $key, "github-token": $token}
  }' | kubectl --kubeconfig "$kubeconfig" apply --server-side --force-conflicts --field-manager=deploy-local -f - >/dev/null
}

# A ServiceAccount that may watch tasks and nothing else: `kubectl create token viewer` makes the token for grpcurl.
chart_viewer() {
  kubectl --kubeconfig "$1" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: ServiceAccount
metadata: {name: viewer, namespace: $TASK_NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer, namespace: $TASK_NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: viewer, namespace: $TASK_NAMESPACE}]
YAML
}

rollout() {
  local kubeconfig=$1 object
  for object in $(kubectl --kubeconfig "$kubeconfig" -n "$RELEASE_NAMESPACE" get deployment,daemonset -o name); do
    log "waiting for $object"
    kubectl --kubeconfig "$kubeconfig" -n "$RELEASE_NAMESPACE" rollout status "$object" --timeout=180s >"$AO_LOGS/rollout.log" 2>&1 || {
      kubectl --kubeconfig "$kubeconfig" -n "$RELEASE_NAMESPACE" get pods -o wide >&2
      kubectl --kubeconfig "$kubeconfig" -n "$RELEASE_NAMESPACE" get events --sort-by=.lastTimestamp | tail -n 10 >&2
      die "$object does not become ready" "kubectl -n $RELEASE_NAMESPACE logs $object --all-containers"
    }
  done
}

grpc_ca() {
  kubectl --kubeconfig "$1" -n "$RELEASE_NAMESPACE" get configmap "$RELEASE-ca" -o 'jsonpath={.data.ca\.crt}' >"$GRPC_CA.new" 2>/dev/null &&
    [[ -s $GRPC_CA.new ]] && mv "$GRPC_CA.new" "$GRPC_CA"
}

chart_up() {
  preload_images &
  local preload=$!
  # What was changed by hand since (a number of replicas, by a test that was ended) is the chart's again.
  chart_install "$AO_KUBE/admin.yaml" "$AO_LOCAL/values.yaml" --force-conflicts
  chart_secret "$AO_KUBE/admin.yaml" "$(cat "$(forge_token_file)")"
  chart_viewer "$AO_KUBE/admin.yaml"
  wait "$preload" || true
  rollout "$AO_KUBE/admin.yaml"
  wait_or_die 30 "the controller's CA" "kubectl -n $RELEASE_NAMESPACE logs deployment/$RELEASE-controller" grpc_ca "$AO_KUBE/admin.yaml"
}

# install_into_context CONTEXT PROFILE: somebody else's cluster. Nothing of it is changed but our release, our CRDs
# and the secret of the sample.
install_into_context() {
  local context=$1 profile=$2 kubeconfig=$AO_STATE/context.yaml registry=${AO_IMAGE_REGISTRY:-}
  mkdir -p "$AO_STATE" "$AO_LOGS"
  ensure_tools kubectl "${CLIENT_TOOLS[@]}"
  [[ -n $registry ]] || die "no registry to push our images to" "set AO_IMAGE_REGISTRY to one that your nodes can pull from"
  context_config "$context" "$kubeconfig"
  kubectl --kubeconfig "$kubeconfig" get --raw /readyz >/dev/null || die "the cluster of $context does not answer" "kubectl --context $context get nodes"
  local options=(--profile "$profile" --push "${registry#http://}" --out "$(images_file)")
  [[ $registry != http://* ]] || options+=(--insecure)
  [[ -z ${AO_BASE_IMAGE:-} ]] || options+=(--base "$AO_BASE_IMAGE")
  "$AO_REPO/deploy/images/build" "${options[@]}" >/dev/null
  # A cluster of one's own has the real forge and the real model: no upstream map, no scripted model.
  chart_install_existing "$kubeconfig"
  printf '%s' "$kubeconfig" | write_file "$AO_STATE/kubeconfig-in-use"
}

# context_config CONTEXT FILE: what leads to that cluster, alone. The kubeconfig in use may be FILE itself, as after
# `eval "$(deploy/local/env)"`, so it is read before it is written.
context_config() {
  local config
  config=$(kubectl --context "$1" config view --raw --minify --flatten 2>/dev/null) ||
    die "your kubeconfig has no context $1" "kubectl config get-contexts lists them"
  (umask 077 && write_file "$2" <<<"$config")
}

chart_install_existing() {
  local kubeconfig=$1
  if model_is_real && [[ -n ${GITHUB_TOKEN:-} ]]; then
    chart_install "$kubeconfig" /dev/null
    chart_secret "$kubeconfig" "$GITHUB_TOKEN"
  else
    ANTHROPIC_API_KEY=${ANTHROPIC_API_KEY:-set-me} chart_install "$kubeconfig" /dev/null
    warn "ANTHROPIC_API_KEY and GITHUB_TOKEN are not both set: make the secret agent-secrets in $TASK_NAMESPACE yourself"
  fi
  chart_viewer "$kubeconfig"
  rollout "$kubeconfig"
}

# uninstall_from_context CONTEXT: the release goes; the CRDs and with them the tasks stay, as helm does it.
uninstall_from_context() {
  local kubeconfig=$AO_STATE/context.yaml
  context_config "$1" "$kubeconfig"
  helm --kubeconfig "$kubeconfig" uninstall "$RELEASE" --namespace "$RELEASE_NAMESPACE"
  kubectl --kubeconfig "$kubeconfig" -n "$TASK_NAMESPACE" delete --ignore-not-found \
    secret/agent-secrets serviceaccount/viewer rolebinding/viewer
  rm -f "$kubeconfig" "$AO_STATE/kubeconfig-in-use"
}
