# shellcheck shell=bash
# Gitea as the local git forge: real git over http, real pull requests, a real API. One organisation, one seeded
# repository, so that the sample task's github.com URL has something to map to.

FORGE_USER=ao-forge
FORGE_ADMIN=forge-admin
FORGE_OWNER=jcwearn
FORGE_REPOSITORY=example-repo

forge_dir() { printf '%s/forge' "$AO_STATE"; }
forge_token_file() { printf '%s/forge-token' "$AO_STATE"; }

# Gitea refuses to run as root, and its user cannot look into root's home, where the cache usually is.
forge_install() {
  local dir source
  dir=$(forge_dir)
  source=$(dirname "$(tool_file gitea)")
  id "$FORGE_USER" >/dev/null 2>&1 ||
    useradd --system --no-create-home --home-dir "$dir/home" --shell /usr/sbin/nologin "$FORGE_USER"
  mkdir -p "$dir/home" "$dir/data" "$dir/conf"
  if [[ $(cat "$dir/version" 2>/dev/null) != "$GITEA_VERSION" ]]; then
    rm -rf "${dir:?}/bin" "${dir:?}/share"
    mkdir -p "$dir/bin"
    cp "$source/gitea" "$dir/bin/"
    cp -r "$source/share" "$dir/"
    chmod -R a+rX "$dir/bin" "$dir/share"
    echo "$GITEA_VERSION" | write_file "$dir/version"
  fi
}

forge_config() {
  local dir
  dir=$(forge_dir)
  # Written once: Gitea adds secrets of its own to it.
  [[ -s $dir/conf/app.ini ]] || write_file "$dir/conf/app.ini" <<INI
APP_NAME = local forge
RUN_USER = $FORGE_USER
RUN_MODE = prod
WORK_PATH = $dir/data
[server]
HTTP_ADDR = $AO_HOST_IP
HTTP_PORT = 3000
ROOT_URL = $AO_FORGE_URL/
STATIC_ROOT_PATH = $dir/share
DISABLE_SSH = true
LFS_START_SERVER = false
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = $dir/data/gitea.db
SQLITE_JOURNAL_MODE = WAL
SQLITE_TIMEOUT = 20000
[repository]
ROOT = $dir/data/repositories
DEFAULT_BRANCH = main
[security]
INSTALL_LOCK = true
SECRET_KEY = $(openssl rand -hex 32)
INTERNAL_TOKEN = $(forge_as_user "$(forge_dir)/bin/gitea" generate secret INTERNAL_TOKEN)
PASSWORD_HASH_ALGO = pbkdf2
[service]
DISABLE_REGISTRATION = true
ENABLE_NOTIFY_MAIL = false
[indexer]
ISSUE_INDEXER_TYPE = db
[actions]
ENABLED = false
[cron]
ENABLED = false
[webhook]
ALLOWED_HOST_LIST = 10.77.0.0/24
[log]
MODE = console
LEVEL = Warn
INI
  chown -R "$FORGE_USER": "$dir/home" "$dir/data" "$dir/conf"
}

forge_as_user() {
  local dir
  dir=$(forge_dir)
  setpriv --reuid="$FORGE_USER" --regid="$FORGE_USER" --clear-groups \
    env -i PATH="$PATH" HOME="$dir/home" USER="$FORGE_USER" GITEA_WORK_DIR="$dir/data" "$@"
}

start_forge() {
  local dir
  dir=$(forge_dir)
  start_daemon forge setpriv --reuid="$FORGE_USER" --regid="$FORGE_USER" --clear-groups \
    env HOME="$dir/home" USER="$FORGE_USER" GITEA_WORK_DIR="$dir/data" \
    "$dir/bin/gitea" web --config "$dir/conf/app.ini"
}

# forge_api METHOD PATH [JSON]
forge_api() {
  local body=()
  [[ $# -lt 3 ]] || body=(-H 'content-type: application/json' -d "$3")
  # The token goes through a file descriptor, so that no process list shows it.
  curl -fsS --max-time 30 -X "$1" -H @<(printf 'authorization: token %s\n' "$(cat "$(forge_token_file)")") \
    "${body[@]}" "$AO_FORGE_URL/api/v1$2"
}

forge_admin_user() {
  local dir token
  dir=$(forge_dir)
  [[ ! -s $(forge_token_file) ]] || ! forge_api GET /user >/dev/null 2>&1 || return 0
  forge_as_user "$dir/bin/gitea" --config "$dir/conf/app.ini" admin user create --admin --username "$FORGE_ADMIN" \
    --email admin@forge.invalid --random-password --must-change-password=false >"$AO_LOGS/forge-setup.log" 2>&1 ||
    grep -q 'already exists' "$AO_LOGS/forge-setup.log" ||
    die "the forge's first user could not be made" "see $AO_LOGS/forge-setup.log"
  token=$(forge_as_user "$dir/bin/gitea" --config "$dir/conf/app.ini" admin user generate-access-token \
    --username "$FORGE_ADMIN" --token-name "local-$(date +%s)" --scopes all --raw 2>>"$AO_LOGS/forge-setup.log" | tail -n 1)
  (umask 077 && printf '%s' "$token" >"$(forge_token_file)")
}

forge_repository() {
  local work
  forge_api GET "/orgs/$FORGE_OWNER" >/dev/null 2>&1 ||
    forge_api POST /orgs "{\"username\":\"$FORGE_OWNER\",\"visibility\":\"public\"}" >/dev/null
  forge_api GET "/repos/$FORGE_OWNER/$FORGE_REPOSITORY" >/dev/null 2>&1 ||
    forge_api POST "/orgs/$FORGE_OWNER/repos" "{\"name\":\"$FORGE_REPOSITORY\",\"default_branch\":\"main\"}" >/dev/null
  [[ $(forge_api GET "/repos/$FORGE_OWNER/$FORGE_REPOSITORY" | jq .empty) == true ]] || return 0
  work=$(mktemp -d)
  cp -r "$AO_LOCAL/example-repo/." "$work"
  (
    cd "$work" || exit 1
    export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
    export GIT_AUTHOR_NAME=example GIT_AUTHOR_EMAIL=example@forge.invalid
    export GIT_COMMITTER_NAME=example GIT_COMMITTER_EMAIL=example@forge.invalid
    git init -q -b main
    git add -A
    git commit -q -m "A small HTTP server with tests"
    # The environment, not the command line, carries the token: command lines are public.
    export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=http.extraHeader
    GIT_CONFIG_VALUE_0="Authorization: token $(cat "$(forge_token_file)")"
    export GIT_CONFIG_VALUE_0
    git push -q "$AO_FORGE_URL/$FORGE_OWNER/$FORGE_REPOSITORY.git" main
  )
  rm -rf "$work"
}

forge_up() {
  log "git forge at $AO_FORGE_URL"
  forge_install
  forge_config
  start_forge
  wait_daemon forge 60 http_answers "$AO_FORGE_URL/api/healthz"
  forge_admin_user
  forge_repository
}

forge_down() {
  stop_daemon forge 10
  # Only the user that forge_install made has its home there.
  if [[ $(getent passwd "$FORGE_USER" | cut -d: -f6) == "$(forge_dir)/home" ]]; then
    userdel "$FORGE_USER" 2>/dev/null || warn "the user $FORGE_USER could not be removed"
  fi
}
