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
  # An empty environment: no credential of the caller's may end up in a long-lived process.
  (
    cd /
    exec 8>&- 9>&-
    exec setsid env -i PATH="$PATH" HOME="${HOME:-/root}" LANG=C.UTF-8 "$@"
  ) </dev/null >>"$AO_LOGS/$name.log" 2>&1 &
  pid=$!
  disown "$pid" 2>/dev/null || true
  printf '%s\n' "$fingerprint" | write_file "$AO_RUN/$name.cmd"
  printf '%s %s %s\n' "$pid" "$(process_start_time "$pid" || true)" "$(boot_id)" | write_file "$AO_RUN/$name.pid"
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
