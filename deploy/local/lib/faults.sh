# shellcheck shell=bash
# What a test of faults leaves behind when it is itself killed: frozen processes, cut links, small disks. Tests mend
# their harm themselves; this is for the rest.

# Table names and the source of small disks begin so (tests/e2e/faults/harm).
FAULT_MARK=ao-fault

fault_thaw() {
  local pid state
  state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1) || return 0
  [[ $state != T ]] || { log "waking frozen process $1" && kill -CONT "$1" 2>/dev/null; } || true
}

# fault_relink NETNS-FILE: deletes the rules that cut or divert links there.
fault_relink() {
  local family table
  nsenter --net="$1" nft list tables 2>/dev/null | while read -r _ family table; do
    [[ $table != "$FAULT_MARK"* ]] || nsenter --net="$1" nft delete table "$family" "$table" || true
  done
}

fault_undisk() {
  local node=$1 folder=/var/lib/agent-operator pid
  mountpoint -q "$(node_mount_ns "$node")" || return 0
  [[ $(nsenter --mount="$(node_mount_ns "$node")" findmnt -no SOURCE "$folder" | tail -n 1) == "$FAULT_MARK" ]] || return 0
  log "taking the small disk of node-$node away"
  nsenter --mount="$(node_mount_ns "$node")" umount -l "$folder"
  # Whoever has it open starts anew, on the node's own disk.
  for pid in $(node_cgroup_pids "$node"); do
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) != supervisor ]] || kill -KILL "$pid" 2>/dev/null || true
  done
}

# A runtime that was kept from mounting image volumes by an immutable folder may do so again. Also needed before the
# state folder can be removed.
fault_unlock_volumes() {
  local folder
  for folder in "$AO_STATE"/node-*/host/run/containerd/state/*/image-volumes; do
    [[ ! -d $folder ]] || chattr -f -i "$folder" || true
  done
}

faults_heal() {
  local node pid part space seen=" "
  fault_unlock_volumes
  for part in "${PARTS[@]}"; do ! pid=$(daemon_pid "$part") || fault_thaw "$pid"; done
  for node in "${AO_NODE_IDS[@]}"; do
    [[ ! -e /run/netns/$(node_netns "$node") ]] || fault_relink "/run/netns/$(node_netns "$node")"
    fault_undisk "$node"
    for pid in $(node_cgroup_pids "$node"); do
      fault_thaw "$pid"
      # One look a network namespace: all containers of a pod share theirs.
      space=$(readlink "/proc/$pid/ns/net" 2>/dev/null) || continue
      [[ $seen != *" $space "* ]] || continue
      seen+="$space "
      fault_relink "/proc/$pid/ns/net"
    done
  done
}
