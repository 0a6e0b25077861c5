# shellcheck shell=bash
# One machine, several nodes: each node is a network namespace on a bridge. All traffic of the cluster stays on
# addresses that are made here.

in_netns() {
  local node=$1
  shift
  # Not `ip netns exec`: it mounts a new /sys, the cgroups vanish from it, and the kubelet stops.
  nsenter --net="/run/netns/$(node_netns "$node")" "$@"
}

netns_alive() { ip netns list | grep -qE "^$(node_netns "$1")( |$)" && in_netns "$1" true 2>/dev/null; }

net_bridge_up() {
  ip link show "$AO_BRIDGE" >/dev/null 2>&1 || ip link add "$AO_BRIDGE" type bridge
  ip address replace "$AO_HOST_IP/24" dev "$AO_BRIDGE"
  ip link set "$AO_BRIDGE" up
  # A container engine on this machine may drop what a bridge forwards.
  if iptables -S FORWARD 2>/dev/null | grep -q -- '-P FORWARD DROP'; then
    iptables -C FORWARD -i "$AO_BRIDGE" -j ACCEPT 2>/dev/null || iptables -I FORWARD -i "$AO_BRIDGE" -j ACCEPT
    iptables -C FORWARD -o "$AO_BRIDGE" -j ACCEPT 2>/dev/null || iptables -I FORWARD -o "$AO_BRIDGE" -j ACCEPT
  fi
}

net_node_up() {
  local node=$1 name other
  name=$(node_netns "$node")
  netns_alive "$node" || {
    ip netns delete "$name" 2>/dev/null || true
    rm -f "/run/netns/$name"
    ip netns add "$name"
  }
  if ! in_netns "$node" ip link show eth0 >/dev/null 2>&1; then
    ip link delete "ao-veth-$node" 2>/dev/null || true
    ip link add "ao-veth-$node" type veth peer name eth0 netns "$name"
  fi
  ip link set "ao-veth-$node" master "$AO_BRIDGE" up
  in_netns "$node" ip link set lo up
  in_netns "$node" ip address replace "$(node_ip "$node")/24" dev eth0
  in_netns "$node" ip link set eth0 up
  # Service addresses are translated after routing, so processes of the node itself need some route to them.
  in_netns "$node" ip route replace "$AO_SERVICE_CIDR" dev eth0
  for other in "${AO_NODE_IDS[@]}"; do
    [[ $other == "$node" ]] || in_netns "$node" ip route replace "$(node_pod_cidr "$other")" via "$(node_ip "$other")"
  done
  in_netns "$node" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
    for call in iptables ip6tables; do
      file=/proc/sys/net/bridge/bridge-nf-call-$call
      [ ! -e $file ] || echo 1 >$file
    done'
  ip route replace "$(node_pod_cidr "$node")" via "$(node_ip "$node")" dev "$AO_BRIDGE"
}

# Only with a real model do pods need a way out; the default is closed.
net_internet_up() {
  local node
  nft -f - <<RULES
table ip ao-nat
delete table ip ao-nat
table ip ao-nat {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr { 10.77.0.0/24, 10.244.0.0/16 } oifname != "$AO_BRIDGE" masquerade
  }
}
RULES
  if [[ $(cat /proc/sys/net/ipv4/ip_forward) == 0 ]]; then
    echo 1 >/proc/sys/net/ipv4/ip_forward
    : | write_file "$AO_STATE/ip-forward-was-off"
  fi
  for node in "${AO_NODE_IDS[@]}"; do in_netns "$node" ip route replace default via "$AO_HOST_IP"; done
}

net_internet_down() {
  local node
  nft delete table ip ao-nat 2>/dev/null || true
  if [[ -f $AO_STATE/ip-forward-was-off ]]; then
    echo 0 >/proc/sys/net/ipv4/ip_forward
    rm -f "$AO_STATE/ip-forward-was-off"
  fi
  for node in "${AO_NODE_IDS[@]}"; do
    ! netns_alive "$node" || in_netns "$node" ip route delete default 2>/dev/null || true
  done
}

net_up() {
  local node
  modprobe -aq bridge br_netfilter veth overlay nf_tables 2>/dev/null || true
  net_bridge_up
  for node in "${AO_NODE_IDS[@]}"; do net_node_up "$node"; done
}

# Whatever still lives in a node's network namespace came from us or into us, and would keep the namespace alive.
net_kill() {
  local node pid
  for node in "${AO_NODE_IDS[@]}"; do
    for pid in $(ip netns pids "$(node_netns "$node")" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
  done
}

net_down() {
  local node
  command -v ip >/dev/null || return 0
  ! command -v nft >/dev/null || net_internet_down
  for node in "${AO_NODE_IDS[@]}"; do
    ip route delete "$(node_pod_cidr "$node")" 2>/dev/null || true
    ip link delete "ao-veth-$node" 2>/dev/null || true
    ip netns delete "$(node_netns "$node")" 2>/dev/null || true
    rm -f "/run/netns/$(node_netns "$node")"
  done
  if command -v iptables >/dev/null; then
    iptables -D FORWARD -i "$AO_BRIDGE" -j ACCEPT 2>/dev/null || true
    iptables -D FORWARD -o "$AO_BRIDGE" -j ACCEPT 2>/dev/null || true
  fi
  ip link delete "$AO_BRIDGE" 2>/dev/null || true
}
