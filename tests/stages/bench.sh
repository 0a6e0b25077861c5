# shellcheck shell=bash
# Whether the benches work and the counts are right; no time fails it. Sourced by tests/run.

stage_bench() {
  local status=0
  timeout --kill-after=30 "${STAGE_LIMIT[bench]}" nice -n 5 tests/bench/run --quick </dev/null || status=$?
  if ((status == 0)); then note bench passed 1; else note bench failed 1; fi
}
