# shellcheck shell=bash
# The simulation. Sourced by tests/run.

stage_sim() {
  local seeds=${AO_SIM_SEEDS:-300}
  # A long run is meant to be long: half a second each, with room for a busy machine.
  # shellcheck disable=SC2154 # a key of the map in tests/run
  STAGE_LIMIT[sim]=$((${STAGE_LIMIT[sim]} + seeds * 2))
  (
    export AO_SIM_SEEDS=$seeds
    cargo_tests sim --test simulation -- --nocapture every_seed_keeps_the_invariants
  )
}
