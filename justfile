# Short names for plain commands; nothing here does more than the line that it shows.

# Lists the names.
default:
    @just --list

# Formats the Rust code.
fmt:
    cargo fmt --all

# Format, lints and the checks of tests/drift.rs.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --test drift

# Everything that needs no cluster.
test:
    cargo test --workspace

# Against a kube-apiserver and etcd without nodes.
api:
    tests/run api

# Everything that proves the project.
all:
    tests/run

# Writes the custom resource definitions from the types, into deploy/crds and the chart.
crds:
    AO_WRITE=1 cargo test --test drift custom_resource

# Writes docs/reference from the types, the chart's values, the proto files, metrics and recorded refusals.
docs:
    AO_WRITE=1 cargo test --test drift reference_of

# Licences, duplicates, sources, and advisories where their database can be reached; builds cargo-deny once.
deny:
    tests/deny

# Moves crates, chart and images to a version; commits nothing.
release VERSION:
    deploy/release {{VERSION}}

# Renders the chart with its defaults.
chart:
    helm lint --strict deploy/helm/agent-operator
    helm template agent-operator deploy/helm/agent-operator --namespace agent-operator-system

# A local cluster with everything installed, and a task that runs in it.
demo:
    deploy/local/demo
