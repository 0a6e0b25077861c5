# shellcheck shell=bash
# What a cluster needs around it, all on the bridge's address: an image registry and a scripted model server.
# The git forge has a file of its own.

http_answers() { curl -fsS -o /dev/null --max-time 3 "$1"; }

# The registry keeps blobs on disk, in the cache, so that images survive `down`, but manifests only in memory:
# registry_remember saves a pushed image's manifest beside them, and each start of the registry puts them back.
start_registry() {
  local fresh=yes
  daemon_pid registry >/dev/null && fresh=no
  mkdir -p "$AO_CACHE/registry" "$AO_CACHE/manifests"
  start_daemon registry "$AO_BIN/crane" registry serve --address "$AO_REGISTRY" --disk "$AO_CACHE/registry"
  wait_daemon registry 20 http_answers "http://$AO_REGISTRY/v2/"
  [[ $fresh == no ]] || registry_restore
}

# registry_remember NAME:TAG
registry_remember() {
  crane manifest --insecure "$AO_REGISTRY/$1" | write_file "$AO_CACHE/manifests/$1"
}

# registry_has_blobs MANIFEST-FILE: its annotations name the base image too, which is none of its blobs.
registry_has_blobs() {
  local digest
  for digest in $(jq -r '.config.digest, .layers[].digest' "$1"); do
    [[ -f $AO_CACHE/registry/sha256/${digest#sha256:} ]] || return 1
  done
}

# An image that lacks a blob is forgotten, so that it is built and pushed again.
registry_restore() {
  local file image
  for file in "$AO_CACHE"/manifests/*:*; do
    [[ -s $file ]] || continue
    registry_has_blobs "$file" || { rm -f "$file"; continue; }
    image=${file##*/}
    curl -fsS -o /dev/null -X PUT -H "content-type: $(jq -r .mediaType "$file")" --data-binary "@$file" \
      "http://$AO_REGISTRY/v2/${image%:*}/manifests/${image##*:}" || rm -f "$file"
  done
}

# registry_prune NAME KEEP: forgets all but the newest tags of an image; registry_sweep then frees their blobs. A registry
# that runs forgets them too, or it would say of an image without blobs that it is there.
registry_prune() {
  local file
  # shellcheck disable=SC2012
  ls -1t "$AO_CACHE/manifests/$1":* 2>/dev/null | tail -n "+$(($2 + 1))" | while read -r file; do
    curl -fsS -o /dev/null --max-time 10 -X DELETE "http://$AO_REGISTRY/v2/$1/manifests/${file##*:}" ||
      warn "the registry does not know ${file##*/}, which is forgotten now"
    rm -f "$file"
  done
}

registry_sweep() {
  local file digests
  digests=$(cat "$AO_CACHE"/manifests/*:* 2>/dev/null | grep -oE 'sha256:[0-9a-f]{64}' | sort -u)
  [[ -n $digests ]] || return 0
  for file in "$AO_CACHE"/registry/sha256/*; do
    [[ ${file##*/} =~ ^[0-9a-f]{64}$ ]] || continue
    grep -q "${file##*/}" <<<"$digests" || rm -f "$file"
  done
}

registry_up() {
  log "registry at $AO_REGISTRY"
  start_registry
}

image_in_registry() { crane digest --insecure "$1" >/dev/null 2>&1; }

# The sandbox image that holds each pod's namespaces: a static program of a few lines that only waits.
pause_image() {
  local folder=$AO_CACHE/pause
  image_in_registry "$AO_REGISTRY/pause:1" && return 0
  log "building the pause image"
  rm -rf "$folder"
  mkdir -p "$folder"
  gcc -Os -static -s -o "$folder/pause" "$AO_REPO/deploy/images/pause/pause.c"
  tar --owner=0 --group=0 --mtime=@0 -C "$folder" -cf "$folder/layer.tar" pause
  crane append --insecure --new_layer "$folder/layer.tar" --new_tag "$AO_REGISTRY/pause:build" >/dev/null 2>&1
  crane mutate --insecure --entrypoint /pause --user 65535:65535 --set-platform linux/amd64 \
    --tag "$AO_REGISTRY/pause:1" "$AO_REGISTRY/pause:build" >/dev/null 2>&1
  registry_remember pause:1
}

# --- model server ---

# The real service is used when the caller has a key for it; the scripted one answers otherwise.
model_is_real() { [[ -n ${ANTHROPIC_API_KEY:-} ]]; }

model_base_url() {
  if model_is_real; then echo "${ANTHROPIC_BASE_URL:-https://api.anthropic.com}"; else echo "http://$AO_MODEL_ADDR"; fi
}

# The binary is copied, so that a later build of it does not pull the file from under the running server, and its
# checksum is in the path, so that a new build is noticed.
start_model() {
  local built copy
  built=${AO_MODEL_BINARY:-$(cargo_target_dir)/debug/scripted-model}
  if [[ ! -x $built ]]; then
    built=$(find "$AO_STATE/model" -name 'scripted-model-*' -printf '%T@ %p\n' 2>/dev/null | sort -rn | head -n 1 | cut -d' ' -f2)
    [[ -n $built ]] || return 1
    copy=$built
  else
    copy=$AO_STATE/model/scripted-model-$(sha256sum "$built" | cut -c1-12)
  fi
  mkdir -p "$AO_STATE/model"
  [[ -x $copy ]] || install -m 755 "$built" "$copy"
  start_daemon model "$copy" --listen "$AO_MODEL_ADDR"
}

# The scripted model is one of the test doubles, and shares their compiled code.
model_build() {
  ! model_is_real || return 0
  command -v cargo >/dev/null || die "cargo is missing" "install Rust with rustup; rust-toolchain.toml names the version"
  log "compiling the scripted model server"
  (cd "$AO_REPO" && CARGO_TARGET_DIR=$(cargo_target_dir) nice -n 5 cargo build --locked --quiet -p agent-operator-doubles) >&2 ||
    die "the scripted model server does not compile" "cargo build -p agent-operator-doubles, or set ANTHROPIC_API_KEY to use the real service"
}

model_up() {
  if model_is_real; then
    log "model: the real service at $(model_base_url), with your ANTHROPIC_API_KEY"
    return 0
  fi
  if ! start_model; then
    warn "no scripted model server: it is not built yet"
    return 0
  fi
  wait_daemon model 20 http_answers "http://$AO_MODEL_ADDR/healthz"
  log "model: the scripted one at http://$AO_MODEL_ADDR (set ANTHROPIC_API_KEY to use the real service)"
}
