# shellcheck shell=bash
# The whole: everything up, everything down, and single parts.

# Raised when the state folder's layout changes: an older state is then taken down instead of healed.
STATE_LAYOUT=1

PARTS=(etcd kube-apiserver kube-controller-manager kube-scheduler coredns registry forge model)
for node in "${AO_NODE_IDS[@]}"; do PARTS+=("containerd-$node" "kubelet-$node" "kube-proxy-$node"); done
unset node

part_known() {
  local part
  for part in "${PARTS[@]}"; do [[ $part != "$1" ]] || return 0; done
  return 1
}

start_part() {
  case $1 in
    containerd-* | kubelet-* | kube-proxy-*) "start_${1%-*}" "${1##*-}" ;;
    *) "start_$1" ;;
  esac
}

check_machine() {
  require_root
  [[ $(uname -s) == Linux ]] || die "this needs Linux" "use deploy/local/up --context NAME with a cluster that you have"
  [[ -n $(cgroup_roots) ]] || die "no cgroups are mounted at /sys/fs/cgroup" "mount them, or use deploy/local/up --context NAME"
}

mark_state() {
  mkdir -p "$AO_STATE" "$AO_RUN" "$AO_LOGS" "$AO_CACHE"
  chmod 755 "$AO_STATE"
  if [[ -f $AO_STATE/layout && $(cat "$AO_STATE/layout") != "$STATE_LAYOUT" ]]; then
    log "the state folder is of another version: taking it down first"
    cluster_down || true
    mkdir -p "$AO_STATE" "$AO_RUN" "$AO_LOGS"
  fi
  echo "$STATE_LAYOUT" | write_file "$AO_STATE/layout"
  rm -f "$AO_STATE/kubeconfig-in-use"
  kill_strays
}

open_or_close_network() {
  if model_is_real; then
    : >"$AO_STATE/internet"
    net_internet_up
  else
    rm -f "$AO_STATE/internet"
    net_internet_down
  fi
}

# cluster_up MODEL: the scripted model server is started here if MODEL is `model`; it may have to be compiled first.
cluster_up() {
  local node
  check_machine
  apt_install "${CLUSTER_PACKAGES[@]}"
  mark_state
  ensure_tools "${CLUSTER_TOOLS[@]}" "${CLIENT_TOOLS[@]}"
  net_up
  faults_heal
  open_or_close_network
  registry_up
  pause_image
  control_plane_up
  for node in "${AO_NODE_IDS[@]}"; do node_up "$node"; done
  forge_up
  [[ $1 != model ]] || model_up
  for node in "${AO_NODE_IDS[@]}"; do
    wait_daemon "kubelet-$node" 120 node_ready "$node"
    log "node-$node is Ready"
  done
}

# Each step is tried even if one before it failed; cluster_leftovers judges the result.
cluster_down() {
  local node part
  # First, for a kubelet that no pid file knows would start anew what is being killed.
  kill_strays
  for part in model coredns; do stop_daemon "$part" 3; done
  for node in "${AO_NODE_IDS[@]}"; do node_down "$node"; done
  for part in kube-scheduler kube-controller-manager kube-apiserver etcd registry; do stop_daemon "$part" 5; done
  forge_down
  net_kill
  node_mounts_down
  net_down
  # Logs stay for a later look; everything else was the cluster's. Not with a mount left in it: that could lead
  # out of the folder.
  if [[ -d $AO_STATE && -z $(state_mounts) ]]; then
    fault_unlock_volumes
    find "$AO_STATE" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf --one-file-system {} +
  fi
}

# Prints what `down` should have taken away and has not.
cluster_leftovers() {
  local node
  stray_pids | sed 's/^/process /'
  state_mounts | sed 's/^/mount /'
  ip -br link show 2>/dev/null | awk -v bridge="$AO_BRIDGE" '$1 == bridge || $1 ~ /^ao-veth-/ {print "interface " $1}'
  ip netns list 2>/dev/null | awk '$1 == "ao-a" || $1 == "ao-b" {print "network namespace " $1}'
  ip route show 2>/dev/null | awk -v bridge="$AO_BRIDGE" 'index($0, bridge) {print "route " $1}'
  for node in "${AO_NODE_IDS[@]}"; do
    cgroup_roots | while read -r root; do
      [[ ! -d $root/$(node_cgroup "$node") ]] || echo "cgroup $root/$(node_cgroup "$node")"
    done
  done
}
