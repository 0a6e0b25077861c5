# shellcheck shell=bash
# Paths, messages and small helpers that every part of deploy/local shares.
# Sourced, never run.

# The folder of this file decides where the repository is, so that the scripts work from any working directory.
AO_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
AO_LOCAL=$(dirname "$AO_LIB")
AO_REPO=$(cd "$AO_LOCAL/../.." && pwd)

# What is expensive to make (tools, image layers, compiled code) lives in the cache and survives `down`;
# what belongs to the running cluster lives in the state folder and goes with it.
AO_CACHE=${AGENT_OPERATOR_CACHE:-${HOME:-/root}/.cache/agent-operator}
AO_STATE=${AGENT_OPERATOR_STATE:-/var/lib/agent-operator-local}
AO_BIN=$AO_CACHE/bin
AO_RUN=$AO_STATE/run
AO_LOGS=$AO_STATE/logs
AO_PKI=$AO_STATE/pki
AO_KUBE=$AO_STATE/kubeconfig

# Addresses: the bridge in the root namespace carries forge, registry and model server, the nodes hang off it.
AO_BRIDGE=ao-br0
AO_HOST_IP=10.77.0.254
AO_NODE_IDS=(a b)
AO_SERVICE_CIDR=10.96.0.0/16
AO_SERVICE_IP=10.96.0.1
AO_DNS_IP=10.96.0.10
AO_REGISTRY=$AO_HOST_IP:5000
AO_FORGE_URL=http://$AO_HOST_IP:3000
AO_MODEL_ADDR=$AO_HOST_IP:8088
AO_GRPC_PORT=30443

# A minimal PATH of a CI or of `sudo` often lacks these.
for dir in /usr/local/go/bin /usr/local/sbin /usr/sbin /sbin "${HOME:-/root}/.cargo/bin"; do
  case ":$PATH:" in *":$dir:"*) ;; *) PATH=$PATH:$dir ;; esac
done
PATH=$AO_BIN:$PATH
export PATH

# `a` is 1, `b` is 2: the last byte of the node's address and, less one, the third byte of its pod range.
node_index() { printf '%d' $(($(printf '%d' "'$1") - 96)); }
node_ip() { printf '10.77.0.%d' "$(node_index "$1")"; }
node_pod_cidr() { printf '10.244.%d.0/24' $(($(node_index "$1") - 1)); }
node_pod_gateway() { printf '10.244.%d.1' $(($(node_index "$1") - 1)); }
node_netns() { printf 'ao-%s' "$1"; }

log() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
warn() { log "warning: $*"; }

# die MESSAGE NEXT-STEP: every failure names what a person can do about it.
die() {
  printf '\nerror: %s\n' "$1" >&2
  [[ $# -lt 2 ]] || printf 'next:  %s\n' "$2" >&2
  exit 1
}

require_root() {
  [[ $(id -u) -eq 0 ]] || die "this needs root: it makes network namespaces, mounts and cgroups" "run it with sudo, or as root"
}

# wait_for SECONDS COMMAND...: polls quickly, because most of what it waits for takes well under a second.
wait_for() {
  local limit=$1 deadline
  shift
  deadline=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

# wait_or_die SECONDS WHAT NEXT-STEP COMMAND...
wait_or_die() {
  local limit=$1 what=$2 next=$3
  shift 3
  wait_for "$limit" "$@" || die "$what was not ready after ${limit}s" "$next"
}

# write_file PATH: standard input to a file in one step, so that nobody ever reads half of it.
write_file() {
  local temporary
  temporary=$1.tmp.$$
  mkdir -p "$(dirname "$1")"
  cat >"$temporary"
  mv -f "$temporary" "$1"
}

# Only one `up`, `down` or `part` changes the machine at a time. The descriptor is not handed on to daemons:
# start_daemon closes it, or a daemon would hold the lock for ever.
lock_state() {
  mkdir -p "$AO_CACHE"
  exec 9>"$AO_CACHE/local.lock"
  if ! flock -n 9; then
    log "another deploy/local command is running; waiting for it"
    flock 9
  fi
}

# Compiled code is shared by images, tests and a fresh clone: it lives in the cache unless the caller says otherwise.
cargo_target_dir() { printf '%s' "${CARGO_TARGET_DIR:-$AO_CACHE/target}"; }

# What every command sources at its start.
load_libraries() {
  local name
  for name in tools process net pki control_plane node services forge images chart cluster faults; do
    # shellcheck source=/dev/null
    . "$AO_LIB/$name.sh"
  done
}
