# shellcheck shell=bash
# Whether the benches work and the counts are right; no time fails it. Sourced by tests/run.

stage_bench() {
  local status=0
  timeout --kill-after=60 "${STAGE_LIMIT[bench]}" nice -n 5 tests/bench/run --quick </dev/null || status=$?
  if ((status == 0)); then note bench passed 1; else note bench failed 1; fi
  if bench_leaves_nothing; then note bench passed 1; else note bench failed 1; fi
}

# A run that is ended in its middle takes down what it has started.
bench_leaves_nothing() {
  local folder=${results:?}/ended pid up=no left
  mkdir -p "$folder"
  TMPDIR=$folder tests/bench/run --quick requests </dev/null >"$folder/said" 2>&1 &
  pid=$!
  # Controller and supervisor are the last to be started.
  for _ in {1..300}; do
    [[ -z $(bench_processes "process supervisor run .*$folder/") ]] || { up=yes; break; }
    kill -0 "$pid" 2>/dev/null || break
    sleep 1
  done
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid" || true
  left=$(bench_processes "$folder/")$(find "$folder" -mindepth 1 ! -name said)
  if [[ $up == no || -n $left ]]; then
    log "a bench that was ended: started=$up, left: $left"
    tail -n 20 "$folder/said" >&2
    return 1
  fi
}

# bench_processes PATTERN: command lines of processes that match it.
bench_processes() {
  local file words
  for file in /proc/[0-9]*/cmdline; do
    { mapfile -d '' -t words <"$file"; } 2>/dev/null || continue
    [[ ! "${words[*]}" =~ $1 ]] || printf '%s\n' "${words[*]}"
  done
}
