# shellcheck shell=bash
# What needs no cluster. Sourced by tests/run.

stage_unit() {
  local folder=$AO_CACHE/prism-tests exports
  cargo_tests unit
  # The GitHub client against GitHub's own description.
  if ! exports=$(deploy/local/prism up --dir "$folder"); then
    note unit failed 1
    return
  fi
  (
    eval "$exports"
    cargo_tests unit --lib -- --ignored gateway::forge::tests::contract
  )
  deploy/local/prism down --dir "$folder"
}
