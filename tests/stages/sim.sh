# shellcheck shell=bash
# The simulation. Sourced by tests/run.

# Up to so many seeds the build of the other tests does; beyond, an optimised one is compiled for them.
readonly SIM_SEEDS_UNOPTIMISED=1000

stage_sim() {
  local seeds=${AO_SIM_SEEDS:-300} profile=()
  if ((seeds > SIM_SEEDS_UNOPTIMISED)); then profile=(--profile simulation); fi
  # A long run is meant to be long: far above what a seed takes on a busy machine.
  # shellcheck disable=SC2154 # a key of the map in tests/run
  STAGE_LIMIT[sim]=$((${STAGE_LIMIT[sim]} + seeds * 2))
  (
    export AO_SIM_SEEDS=$seeds
    cargo_tests sim "${profile[@]}" --test simulation -- --nocapture every_seed_keeps_the_invariants
  )
}
