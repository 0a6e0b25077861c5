# shellcheck shell=bash
# Our own images for the local cluster: built by deploy/images/build, pushed to the local registry, and put onto both
# nodes ahead of the first pod that needs them.

images_file() { printf '%s/images.env' "$AO_STATE"; }

# image_reference NAME
image_reference() { sed -n "s/^$1=//p" "$(images_file)"; }

images_up() {
  local profile=$1 name
  # Here no image registry can be taken for granted, so the base comes from the package sources.
  "$AO_REPO/deploy/images/build" --profile "$profile" --base "${AO_BASE_IMAGE:-debootstrap}" \
    --push "$AO_REGISTRY" --insecure --out "$(images_file)" >/dev/null
  for name in controller supervisor runner agent; do
    image_reference "$name" | sed "s#^$AO_REGISTRY/##" | while read -r tagged; do registry_remember "$tagged"; done
    # Some older builds stay for a quick way back; the large ones cost too much to keep.
    registry_prune "agent-operator-$name" "$([[ $name == agent || $name == runner ]] && echo 2 || echo 5)"
  done
  registry_sweep
}

# preload_images: a first step should not wait for half a gigabyte to be unpacked.
preload_images() {
  local node name jobs=() job
  for node in "${AO_NODE_IDS[@]}"; do
    (
      for name in supervisor controller runner agent; do
        node_ctr "$node" --namespace k8s.io images pull --hosts-dir "$(node_dir "$node")/registry" \
          "$(image_reference "$name")" >"$AO_LOGS/preload-$node.log" 2>&1 || exit 1
      done
    ) &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || warn "images could not be loaded ahead; the kubelet will pull them (see $AO_LOGS/preload-*.log)"
  done
}
