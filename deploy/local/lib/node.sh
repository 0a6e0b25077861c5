# shellcheck shell=bash
# A node: its own network namespace (net.sh), its own mount namespace, containerd, kubelet and kube-proxy.
# The mount namespace hides the folders that a kubelet and its DaemonSets share with a whole machine, so that two
# nodes on one machine do not see each other's.

# /var/lib/kubelet although each kubelet has a --root-dir: the socket for device plugins is always made there, and of
# two kubelets that start in the same moment one finds it taken and ends.
NODE_OWN_DIRS=(/var/log/pods /var/log/containers /var/lib/kubelet /run/containerd /var/lib/agent-operator /run/agent-operator)

node_dir() { printf '%s/node-%s' "$AO_STATE" "$1"; }
node_cgroup() { printf 'ao-node-%s' "$1"; }
node_mount_ns() { printf '%s/mntns/%s' "$AO_STATE" "$1"; }
node_socket() { printf '%s/containerd.sock' "$(node_dir "$1")"; }

in_node() {
  local node=$1
  shift
  nsenter --mount="$(node_mount_ns "$node")" --net="/run/netns/$(node_netns "$node")" "$@"
}

# --- mount namespace ---

# A namespace file can only be bound on a private mount.
mount_ns_home() {
  mkdir -p "$AO_STATE/mntns"
  mountpoint -q "$AO_STATE/mntns" || mount --bind "$AO_STATE/mntns" "$AO_STATE/mntns"
  mount --make-private "$AO_STATE/mntns"
}

node_mounts_ok() {
  local dir
  mountpoint -q "$(node_mount_ns "$1")" || return 1
  for dir in "${NODE_OWN_DIRS[@]}"; do
    nsenter --mount="$(node_mount_ns "$1")" mountpoint -q "$dir" || return 1
  done
}

node_mounts_up() {
  local node=$1 file dir own
  node_mounts_ok "$node" && return 0
  mount_ns_home
  file=$(node_mount_ns "$node")
  while mountpoint -q "$file"; do umount -l "$file"; done
  : >"$file"
  for dir in "${NODE_OWN_DIRS[@]}"; do
    # Mount points that were not there are taken away again by node_mounts_down.
    [[ -d $dir ]] || { mkdir -p "$dir" && echo "$dir" >>"$AO_STATE/made-dirs"; }
    mkdir -p "$(node_dir "$node")/host$dir"
  done
  unshare --mount="$file" --propagation slave sh -ec '
    own=$1 state=$2
    shift 2
    # rprivate would keep the other node'"'"'s later mounts alive in here; slave lets their end arrive.
    mount --bind "$state" "$state"
    mount --make-rshared "$state"
    for dir in "$@"; do
      mount --bind "$own$dir" "$dir"
      mount --make-rshared "$dir"
    done' sh "$(node_dir "$node")/host" "$(node_dir "$node")" "${NODE_OWN_DIRS[@]}"
}

# Mounts of ours in the root mount namespace, deepest first.
state_mounts() { awk -v state="$AO_STATE/" 'index($5, state) == 1 {print $5}' /proc/self/mountinfo | sort -r; }

node_mounts_down() {
  local file dir
  for file in "$AO_STATE"/mntns/*; do
    [[ -e $file ]] || continue
    while mountpoint -q "$file"; do umount -l "$file"; done
  done
  while mountpoint -q "$AO_STATE/mntns"; do umount -l "$AO_STATE/mntns"; done
  # Whatever a failure in the middle left.
  state_mounts | while read -r dir; do
    umount -l "$dir" 2>/dev/null || true
  done
  if [[ -f $AO_STATE/made-dirs ]]; then
    sort -r "$AO_STATE/made-dirs" | while read -r dir; do rmdir "$dir" 2>/dev/null || true; done
    rm -f "$AO_STATE/made-dirs"
  fi
}

# --- cgroups ---

cgroup_is_v2() { [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]; }

# Every place where a node's cgroup exists: each tree of v1 (and the empty v2 tree beside them), or the one tree of v2.
cgroup_roots() {
  if cgroup_is_v2; then
    echo /sys/fs/cgroup
  else
    findmnt -rno TARGET -t cgroup,cgroup2 | grep '^/sys/fs/cgroup/'
  fi
}

node_cgroup_up() {
  local root folder file
  while read -r root; do
    folder=$root/$(node_cgroup "$1")
    if cgroup_is_v2; then
      sed 's/\([a-z]*\)/+\1/g' "$root/cgroup.controllers" >"$root/cgroup.subtree_control" 2>/dev/null || true
    fi
    mkdir -p "$folder"
    # An empty cpuset takes no process in.
    for file in cpuset.cpus cpuset.mems; do
      [[ ! -s $root/$file || -s $folder/$file && -n $(cat "$folder/$file") ]] || cat "$root/$file" >"$folder/$file"
    done
  done < <(cgroup_roots)
}

# Every process of the node's pods, by the cgroup that holds it.
node_cgroup_pids() {
  local root
  while read -r root; do
    [[ ! -d $root/$(node_cgroup "$1") ]] || find "$root/$(node_cgroup "$1")" -name cgroup.procs -exec cat {} + 2>/dev/null
  done < <(cgroup_roots) | sort -un
}

node_cgroup_down() {
  local root pid attempt
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    pid=$(node_cgroup_pids "$1")
    [[ -n $pid ]] || break
    # shellcheck disable=SC2086
    kill -KILL $pid 2>/dev/null || true
    sleep 0.$((attempt < 5 ? 1 : 5))
  done
  while read -r root; do
    [[ ! -d $root/$(node_cgroup "$1") ]] || find "$root/$(node_cgroup "$1")" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done < <(cgroup_roots)
}

# --- containerd ---

containerd_config() {
  local node=$1 dir
  dir=$(node_dir "$node")
  write_file "$dir/registry/$AO_REGISTRY/hosts.toml" <<TOML
server = "http://$AO_REGISTRY"
[host."http://$AO_REGISTRY"]
  capabilities = ["pull", "resolve"]
TOML
  write_file "$dir/cni/10-bridge.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {
      "type": "host-local", "dataDir": "$dir/cni-addresses",
      "ranges": [[{"subnet": "$(node_pod_cidr "$node")", "gateway": "$(node_pod_gateway "$node")"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
JSON
  # No KVM may be taken for granted: system calls are caught by seccomp.
  write_file "$dir/runsc.toml" <<TOML
binary_name = "$AO_BIN/runsc"
root = "/run/containerd/runsc"
[runsc_config]
  platform = "systrap"
TOML
  write_file "$dir/containerd.toml" <<TOML
version = 3
root = "$dir/containerd"
state = "/run/containerd/state"
[grpc]
  address = "$(node_socket "$node")"
[ttrpc]
  address = "$(node_socket "$node").ttrpc"
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE (root in many containers and CI machines) every sandbox would fail otherwise.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$dir/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
  # For a RuntimeClass with this handler. Its programs are there once a test has built them (tools.sh).
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gvisor]
    runtime_type = "io.containerd.runsc.v1"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gvisor.options]
      TypeUrl = "io.containerd.runsc.v1.options"
      ConfigPath = "$dir/runsc.toml"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  discard_unpacked_layers = true
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "$AO_REGISTRY/pause:1"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "$dir/registry"
TOML
}

node_ctr() {
  local node=$1
  shift
  "$AO_BIN/ctr" --address "$(node_socket "$node")" "$@"
}

start_containerd() {
  local node=$1
  containerd_config "$node"
  # A socket that a killed containerd left would answer nobody.
  daemon_pid "containerd-$node" >/dev/null || rm -f "$(node_socket "$node")" "$(node_socket "$node").ttrpc"
  start_daemon "containerd-$node" nsenter --mount="$(node_mount_ns "$node")" --net="/run/netns/$(node_netns "$node")" \
    "$AO_BIN/containerd" --config "$(node_dir "$node")/containerd.toml"
  wait_daemon "containerd-$node" 60 node_ctr "$node" version
}

# Shims are children of nobody: they are known by the socket that they were started with.
node_shim_pids() {
  local file pid arguments socket
  socket=$(node_socket "$1")
  for file in /proc/[0-9]*/cmdline; do
    mapfile -d '' -t arguments <"$file" 2>/dev/null || continue
    [[ ${#arguments[@]} -gt 0 ]] || continue
    [[ ${arguments[0]} == *containerd-shim-runc-v2 || ${arguments[0]} == *containerd-shim-runsc-v1 ]] || continue
    [[ " ${arguments[*]} " == *" -address $socket "* ]] || continue
    pid=${file#/proc/}
    echo "${pid%/cmdline}"
  done
}

# --- kubelet and kube-proxy ---

# A kubelet that cannot measure the file system under its folder ends, unless it is told not to care.
kubelet_measures_disk() {
  if [[ $(findmnt -nvo SOURCE --target "$AO_STATE") == /dev/* ]]; then echo true; else echo false; fi
}

kubelet_config() {
  local node=$1 dir
  dir=$(node_dir "$node")
  write_file "$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$node")
healthzBindAddress: 127.0.0.1
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $AO_PKI/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $AO_PKI/node-$node.crt
tlsPrivateKeyFile: $AO_PKI/node-$node.key
rotateCertificates: false
clusterDomain: cluster.local
clusterDNS: [$AO_DNS_IP]
resolvConf: $dir/resolv.conf
containerRuntimeEndpoint: unix://$(node_socket "$node")
cgroupDriver: cgroupfs
cgroupRoot: /$(node_cgroup "$node")
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: $(kubelet_measures_disk)
# Sizes of volumes are looked at often, so that tests need not wait for minutes.
volumeStatsAggPeriod: 10s
maxPods: 110
podPidsLimit: 1024
serializeImagePulls: false
# Tests kill the same process again and again; minutes of back-off would only be waited out.
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
# Small files, looked at often, so that tests see rotations without writing gigabytes.
containerLogMaxSize: 5Mi
containerLogMaxFiles: 5
containerLogMonitorInterval: 3s
volumePluginDir: $dir/volume-plugins
# A developer's disk is often nearly full: neither pods nor images may go because of that.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 50Mi, nodefs.available: 10Mi, imagefs.available: 10Mi, nodefs.inodesFree: 1%, imagefs.inodesFree: 1%}
YAML
  # Pods ask the cluster's DNS only; what it may ask in turn is decided in one place, its own configuration.
  echo "nameserver $AO_DNS_IP" | write_file "$dir/resolv.conf"
}

start_kubelet() {
  local node=$1
  kubelet_config "$node"
  node_cgroup_up "$node"
  start_daemon "kubelet-$node" nsenter --mount="$(node_mount_ns "$node")" --net="/run/netns/$(node_netns "$node")" \
    "$AO_BIN/kubelet" --config="$(node_dir "$node")/kubelet.yaml" --kubeconfig="$AO_KUBE/node-$node.yaml" \
    --root-dir="$(node_dir "$node")/kubelet" --hostname-override="node-$node" --node-ip="$(node_ip "$node")"
}

start_kube-proxy() {
  local node=$1
  start_daemon "kube-proxy-$node" nsenter --net="/run/netns/$(node_netns "$node")" "$AO_BIN/kube-proxy" \
    --kubeconfig="$AO_KUBE/proxy.yaml" --hostname-override="node-$node" --proxy-mode=nftables \
    --cluster-cidr=10.244.0.0/16 --healthz-bind-address="$(node_ip "$node"):10256" --metrics-bind-address=127.0.0.1:10249 \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
}

# The Ready of a killed kubelet stays in the API for a while, so its own health counts too.
node_ready() {
  in_netns "$1" curl -fsS --max-time 2 -o /dev/null http://127.0.0.1:10248/healthz &&
    [[ $(kubectl_admin get node "node-$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}') == True ]]
}

node_up() {
  local node=$1
  mkdir -p "$(node_dir "$node")"
  node_mounts_up "$node"
  start_containerd "$node"
  start_kubelet "$node"
  start_kube-proxy "$node"
}

# Order: kubelet first, so that it does not start anew what is being killed.
node_down() {
  local node=$1 pid
  stop_daemon "kubelet-$node" 5
  stop_daemon "kube-proxy-$node" 3
  stop_daemon "containerd-$node" 5
  for pid in $(node_shim_pids "$node"); do kill -KILL "$pid" 2>/dev/null || true; done
  node_cgroup_down "$node"
}
