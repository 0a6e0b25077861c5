# shellcheck shell=bash
# Everything the cluster is made of: Debian packages, and Go programs built once into the cache.
# A tool's folder carries its version, so a changed version builds again and an unchanged one never does.

KUBERNETES_VERSION=1.36.3
ETCD_VERSION=3.6.14
CONTAINERD_VERSION=2.4.2
CRANE_VERSION=0.22.1
HELM_VERSION=4.3.1
GRPCURL_VERSION=1.9.4
KUBECONFORM_VERSION=0.8.0
ACTIONLINT_VERSION=1.7.12
PROMETHEUS_OPERATOR_VERSION=0.85.0
COREDNS_VERSION=1.15.0
GITEA_VERSION=1.26.4
CARGO_DENY_VERSION=0.20.2
# gVisor tags no version for Go: a state of its branch `go`, where generated files are checked in.
GVISOR_VERSION=0.0.0-20260905035102-160fafc42237

# In the order in which a cluster needs them. API tests need few of them, and helm.
APISERVER_TOOLS=(kube-apiserver etcd kubectl helm)
CLUSTER_TOOLS=(kube-apiserver etcd kubectl kube-controller-manager kube-scheduler kube-proxy kubelet
  containerd containerd-shim-runc-v2 ctr crane coredns gitea)
CLIENT_TOOLS=(helm grpcurl)
# A container runtime with a kernel of its own; built for the tests that ask for it.
RUNTIME_TOOLS=(runsc containerd-shim-runsc-v1)

CLUSTER_PACKAGES=(runc containernetworking-plugins iptables nftables conntrack iproute2 util-linux procps kmod
  openssl curl jq git ca-certificates gcc libc6-dev)
IMAGE_PACKAGES=(buildah debootstrap)

# apt_install PACKAGE...: installs what is missing, and asks the package lists only then.
apt_install() {
  local package missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "missing: ${missing[*]}" "install them with your distribution's package manager; deploy/local knows Debian and Ubuntu"
  log "installing Debian packages: ${missing[*]}"
  mkdir -p "$AO_CACHE/log"
  # A service that a package brings must not start here: the cluster brings its own.
  {
    apt-get -o DPkg::Lock::Timeout=300 update &&
      DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
  } >"$AO_CACHE/log/apt.log" 2>&1 </dev/null ||
    die "apt-get could not install ${missing[*]}" "see $AO_CACHE/log/apt.log"
}

tool_version() {
  case $1 in
    kubeconform) echo "$KUBECONFORM_VERSION" ;;
    actionlint) echo "$ACTIONLINT_VERSION" ;;
    kube*) echo "$KUBERNETES_VERSION" ;;
    etcd) echo "$ETCD_VERSION" ;;
    runsc | containerd-shim-runsc-v1) echo "$GVISOR_VERSION" ;;
    containerd* | ctr) echo "$CONTAINERD_VERSION" ;;
    crane) echo "$CRANE_VERSION" ;;
    helm) echo "$HELM_VERSION" ;;
    grpcurl) echo "$GRPCURL_VERSION" ;;
    coredns) echo "$COREDNS_VERSION" ;;
    gitea) echo "$GITEA_VERSION" ;;
    cargo-deny) echo "$CARGO_DENY_VERSION" ;;
    *) die "unknown tool $1" ;;
  esac
}

# The package of a tool that an ordinary `go get` can fetch.
tool_package() {
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    runsc) echo gvisor.dev/gvisor/runsc ;;
    containerd-shim-runsc-v1) echo gvisor.dev/gvisor/shim ;;
    containerd | containerd-shim-runc-v2 | ctr) echo "github.com/containerd/containerd/v2/cmd/$1" ;;
    crane) echo github.com/google/go-containerregistry/cmd/crane ;;
    helm) echo helm.sh/helm/v4/cmd/helm ;;
    grpcurl) echo github.com/fullstorydev/grpcurl/cmd/grpcurl ;;
    kubeconform) echo github.com/yannh/kubeconform/cmd/kubeconform ;;
    actionlint) echo github.com/rhysd/actionlint/cmd/actionlint ;;
    coredns) echo github.com/coredns/coredns ;;
    *) die "no Go package known for $1" ;;
  esac
}

tool_file() { printf '%s/tools/%s-%s/%s' "$AO_CACHE" "$1" "$(tool_version "$1")" "$1"; }

# nice: the machine often compiles something else at the same time.
go_quiet() { nice -n 5 go "$@"; }

# The wrapper module for Kubernetes: `k8s.io/kubernetes` replaces its staging modules by local folders, which
# `go install` refuses, so this module replaces each by its published version.
kubernetes_module() {
  local dir=$AO_CACHE/modules/kubernetes-$KUBERNETES_VERSION temporary source name
  [[ -f $dir/go.sum ]] && return 0
  temporary=$dir.tmp.$$
  mkdir -p "$temporary"
  cd "$temporary"
  source=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES_VERSION" | sed -n 's/^[[:space:]]*"GoMod": "\(.*\)",*$/\1/p')
  {
    echo 'module wrapper'
    sed -n '/^go /p;/^godebug/,/^)/p' "$source"
    echo "require k8s.io/kubernetes v$KUBERNETES_VERSION"
    sed -n 's#^[[:space:]]*\(replace \)\{0,1\}\(k8s.io/[a-z0-9-]*\) => ./staging/.*#\2#p' "$source" | while read -r name; do
      echo "replace $name => $name v0${KUBERNETES_VERSION#1}"
    done
  } >go.mod
  {
    printf '//go:build tools\n\npackage wrapper\n\nimport (\n'
    for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
      printf '\t_ "k8s.io/kubernetes/cmd/%s"\n' "$name"
    done
    echo ')'
  } >tools.go
  go_quiet mod tidy
  rm -rf "$dir"
  mv "$temporary" "$dir"
}

build_kubernetes() {
  local flags
  # Without its version the API server calls itself v0.0.0, and clients refuse to talk to it.
  flags="-s -w -X k8s.io/component-base/version.gitVersion=v$KUBERNETES_VERSION"
  flags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${KUBERNETES_VERSION:2:2}"
  flags+=" -X k8s.io/component-base/version.gitTreeState=clean"
  kubernetes_module
  cd "$AO_CACHE/modules/kubernetes-$KUBERNETES_VERSION"
  CGO_ENABLED=0 go_quiet build -trimpath -ldflags "$flags" -o "$2" "k8s.io/kubernetes/cmd/$1"
}

# Gitea's own go.mod replaces modules, so it is built inside a copy of its module, which also holds the templates
# it reads at run time. Its web style sheets are not built: the API and git are all that is needed.
build_gitea() {
  local source copy=$AO_CACHE/modules/gitea-$GITEA_VERSION
  if [[ ! -f $copy/go.mod ]]; then
    source=$(go mod download -json "code.gitea.io/gitea@v$GITEA_VERSION" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
    mkdir -p "$copy.tmp.$$"
    cp -r --no-preserve=mode "$source/." "$copy.tmp.$$"
    rm -rf "$copy"
    mv "$copy.tmp.$$" "$copy"
  fi
  cd "$copy"
  CGO_ENABLED=1 go_quiet build -mod=mod -trimpath -tags sqlite,sqlite_unlock_notify \
    -ldflags "-s -w -X main.Version=$GITEA_VERSION" -o "$2" .
  mkdir -p "$(dirname "$2")/share/public"
  cp -r templates options "$(dirname "$2")/share/"
}

# Each other tool gets a small module of its own, since their dependencies' versions clash.
build_plain() {
  local package version module
  package=$(tool_package "$1")
  version=$(tool_version "$1")
  module=$AO_CACHE/modules/$1-$version
  mkdir -p "$module"
  cd "$module"
  [[ -f go.mod ]] || go mod init "wrapper-$1"
  go_quiet get -tool "$package@v$version"
  CGO_ENABLED=0 go_quiet build -trimpath -tags no_btrfs -ldflags "$(plain_ldflags "$1" "$version")" -o "$2" "$package"
}

# The shim of gVisor wants to be the last one that the kernel kills, which takes CAP_SYS_RESOURCE, and ends without.
# Here it is killed as anybody else, so both programs are built in a copy of their module.
build_gvisor() {
  local source copy=$AO_CACHE/modules/gvisor-$GVISOR_VERSION manager=pkg/shim/v1/manager.go
  if [[ ! -f $copy/go.mod ]]; then
    source=$(go mod download -json "gvisor.dev/gvisor@v$GVISOR_VERSION" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
    rm -rf "$copy" "$copy".tmp.*
    cp -r --no-preserve=mode "$source/." "$copy.tmp.$$"
    sed -i 's/oomScoreMax = -999$/oomScoreMax = 0/' "$copy.tmp.$$/$manager"
    if cmp -s "$source/$manager" "$copy.tmp.$$/$manager"; then
      echo "$manager has changed: where does it set the score now?"
      return 1
    fi
    mv "$copy.tmp.$$" "$copy"
  fi
  cd "$copy"
  CGO_ENABLED=0 go_quiet build -mod=mod -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$GVISOR_VERSION" \
    -o "$2" "$(tool_package "$1")"
}

plain_ldflags() {
  case $1 in
    containerd*) echo "-s -w -X github.com/containerd/containerd/v2/version.Version=v$2" ;;
    helm) echo "-s -w -X helm.sh/helm/v4/internal/version.version=v$2" ;;
    *) echo "-s -w" ;;
  esac
}

# The one program that is not Go. Its dependencies are compiled once and thrown away.
build_cargo() {
  local root
  root=$(dirname "$2")
  CARGO_TARGET_DIR=$root/target nice -n 5 cargo install --locked --root "$root" --version "$(tool_version "$1")" "$1"
  mv "$root/bin/$1" "$2"
  rm -rf "${root:?}/target" "${root:?}/bin"
}

# attempt_build BUILDER NAME FOLDER. `set -e` does not work under a condition, so the result is looked at as well.
attempt_build() {
  mkdir -p "$3"
  (
    set -e
    "$1" "$2" "$3/$2"
  ) >"$AO_CACHE/log/build-$2.log" 2>&1 </dev/null && [[ -x $3/$2 ]]
}

# build_tool NAME POSITION: into a temporary folder that is renamed at the end, so half a build never counts.
build_tool() {
  local name=$1 folder builder=build_plain started=$SECONDS try
  folder=$(dirname "$(tool_file "$name")")
  case $name in
    kubeconform) ;;
    kube*) builder=build_kubernetes ;;
    gitea) builder=build_gitea ;;
    *runsc*) builder=build_gvisor ;;
    cargo-*) builder=build_cargo ;;
  esac
  log "building $name $(tool_version "$name") ($2)…"
  mkdir -p "$AO_CACHE/log"
  # Sources come over the network; what was fetched or compiled before a hiccup is not done again.
  for try in 1 2 3; do
    rm -rf "$folder".tmp.*
    if attempt_build "$builder" "$name" "$folder.tmp.$$"; then break; fi
    rm -rf "$folder.tmp.$$"
    if ((try == 3)); then
      tail -n 15 "$AO_CACHE/log/build-$name.log" >&2
      die "building $name failed" "see $AO_CACHE/log/build-$name.log; run the command again, it goes on where it stopped"
    fi
    warn "building $name failed, trying again"
    sleep 5
  done
  rm -rf "$folder"
  mv "$folder.tmp.$$" "$folder"
  log "built $name in $((SECONDS - started))s"
}

require_go() {
  command -v go >/dev/null || die "Go is missing: the cluster's programs are built from source" "install Go 1.26 or newer from your distribution or from go.dev, and put it on PATH"
}

# ensure_tools NAME...: builds what the cache lacks and links all of them into one folder for PATH.
ensure_tools() {
  local name position=0
  mkdir -p "$AO_CACHE/tools" "$AO_CACHE/modules" "$AO_BIN"
  exec 8>"$AO_CACHE/tools.lock"
  flock 8
  for name in "$@"; do
    position=$((position + 1))
    if [[ ! -x $(tool_file "$name") ]]; then
      require_go
      build_tool "$name" "$position/$#"
    fi
    ln -sfn "$(tool_file "$name")" "$AO_BIN/$name"
  done
  exec 8>&-
}
