# shellcheck shell=bash
# What needs a kube-apiserver and etcd, or a kernel with nftables, and no node. Sourced by tests/run.

stage_api() {
  local folder=$AO_CACHE/apiserver-tests exports
  if ! exports=$(deploy/local/apiserver up --dir "$folder"); then
    note api failed 1
    return
  fi
  # The rules of the enforcer are tried in network namespaces.
  (apt_install nftables iproute2 iputils-ping util-linux) || true
  (
    eval "$exports"
    export AO_REQUIRE_APISERVER=1
    cargo_tests api --test api_server -- --include-ignored
    cargo_tests api --test reconcile -- --include-ignored
  )
  deploy/local/apiserver down --dir "$folder"
}
