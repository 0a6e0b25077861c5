# shellcheck shell=bash
# Daemons and their pid files. A pid alone is not trusted: after a crash or a reboot it may belong to somebody
# else, so the file also holds the process's start time and the boot it belongs to.

process_start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The command name, in parentheses, may hold spaces: count the fields after it.
  stat=${stat##*) }
  # shellcheck disable=SC2086
  set -- $stat
  [[ $1 != Z ]] || return 1
  printf '%s' "${20}"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# daemon_pid NAME: prints the pid if the process that we started is alive.
daemon_pid() {
  local pid start boot
  [[ -f $AO_RUN/$1.pid ]] || return 1
  read -r pid start boot <"$AO_RUN/$1.pid" || return 1
  [[ -n ${boot:-} && $boot == "$(boot_id)" && $start == "$(process_start_time "$pid")" ]] || return 1
  printf '%s' "$pid"
}

# The command line and the contents of the configuration files that it names.
daemon_fingerprint() {
  local argument file
  printf '%s\n' "$*"
  for argument in "$@"; do
    file=${argument#*=}
    [[ $file == "$AO_STATE"/* && -f $file && $(stat -c %s "$file") -lt 100000 ]] || continue
    sha256sum <"$file" 2>/dev/null || true
  done
}

# start_daemon NAME COMMAND...: leaves a running one alone unless it was started with another command.
start_daemon() {
  local name=$1 pid fingerprint
  shift
  fingerprint=$(daemon_fingerprint "$@")
  mkdir -p "$AO_RUN" "$AO_LOGS"
  if pid=$(daemon_pid "$name"); then
    [[ $(cat "$AO_RUN/$name.cmd" 2>/dev/null) != "$fingerprint" ]] || return 0
    log "restarting $name: its command line or configuration changed"
    stop_daemon "$name"
  fi
  printf '%s\n' "$fingerprint" | write_file "$AO_RUN/$name.cmd"
  rm -f "$AO_RUN/$name.pid"
  # The daemon's own process writes the pid file before it becomes the daemon: whoever ends this script at any
  # moment leaves no daemon that nobody knows of.
  (
    cd /
    exec 8>&- 9>&-
    # Taken first: inside a command substitution it would be the substitution's.
    self=$BASHPID
    printf '%s %s %s\n' "$self" "$(process_start_time "$self")" "$(boot_id)" | write_file "$AO_RUN/$name.pid"
    # An empty environment: no credential of the caller's may end up in a long-lived process.
    exec setsid env -i PATH="$PATH" HOME="${HOME:-/root}" LANG=C.UTF-8 "$@"
  ) </dev/null >>"$AO_LOGS/$name.log" 2>&1 &
  disown $! 2>/dev/null || true
  until [[ -f $AO_RUN/$name.pid ]]; do sleep 0.01; done
}

# kill_pid PID [SECONDS]: asks first, then insists. Start time checked, since the pid may be reused meanwhile.
kill_pid() {
  local pid=$1 limit=${2:-10} start deadline
  start=$(process_start_time "$pid") || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  deadline=$((SECONDS + limit))
  while [[ $(process_start_time "$pid") == "$start" ]]; do
    if ((SECONDS >= deadline)); then
      kill -KILL "$pid" 2>/dev/null || true
      deadline=$((SECONDS + 5))
    fi
    sleep 0.05
  done
}

stop_daemon() {
  local pid
  if pid=$(daemon_pid "$1"); then kill_pid "$pid" "${2:-10}"; fi
  rm -f "$AO_RUN/$1.pid" "$AO_RUN/$1.cmd"
}

# check_daemon NAME: for wait loops; a daemon that has died will not become ready.
check_daemon() {
  daemon_pid "$1" >/dev/null || {
    tail -n 20 "$AO_LOGS/$1.log" >&2
    die "$1 has stopped by itself" "its log: $AO_LOGS/$1.log"
  }
}

# wait_daemon NAME SECONDS PROBE...: ready when the probe succeeds.
wait_daemon() {
  local name=$1 deadline=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    check_daemon "$name"
    ((SECONDS < deadline)) || {
      tail -n 20 "$AO_LOGS/$name.log" >&2
      die "$name runs but is not ready" "its log: $AO_LOGS/$name.log"
    }
    sleep 0.2
  done
}

# Daemons of ours that no pid file knows, because the state folder was removed under them. They are known by their
# program, which lies in our folders, and by the state folder or registry address in their command line.
stray_pids() {
  local folder pid program parent known=" " name arguments
  for name in "$AO_RUN"/*.pid; do
    name=${name##*/}
    known+="$(daemon_pid "${name%.pid}" || true) "
  done
  for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    program=$(readlink "$folder/exe" 2>/dev/null) || continue
    case ${program%% (deleted)} in
      "$AO_CACHE"/tools/*/kubectl | "$AO_CACHE"/tools/*/containerd-shim-runc-v2 | "$AO_CACHE"/tools/*/ctr) continue ;;
      "$AO_CACHE"/tools/*/helm | "$AO_CACHE"/tools/*/grpcurl) continue ;;
      # Pods, as what a shim has started.
      "$AO_CACHE"/tools/*/containerd-shim-runsc-v1 | "$AO_CACHE"/tools/*/runsc) continue ;;
      "$AO_CACHE"/tools/*) ;;
      "$AO_STATE"/forge/bin/gitea | "$AO_STATE"/model/*) ;;
      *) continue ;;
    esac
    arguments=$(tr '\0' ' ' <"$folder/cmdline" 2>/dev/null) || continue
    [[ $arguments == *"$AO_STATE/"* || $arguments == *"serve --address $AO_REGISTRY"* ]] || continue
    parent=$(sed 's/.*) //' "$folder/stat" 2>/dev/null | cut -d' ' -f2)
    [[ $known == *" $pid "* || $known == *" $parent "* ]] || echo "$pid"
  done
}

kill_strays() {
  local pid
  for pid in $(stray_pids); do
    log "ending a stray process of an earlier run: $pid ($(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-60)…)"
    kill_pid "$pid" 5
  done
}
