//! What must not drift apart, held by text: generated files and their sources, chart and code,
//! versions, the borders between modules, sizes. Needs no cluster.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic)]
// Pages are written piece by piece; speed is nothing to them.
#![allow(clippy::format_push_string)]

#[path = "drift/borders.rs"]
mod borders;
#[path = "drift/chart.rs"]
mod chart;
#[path = "drift/definitions.rs"]
mod definitions;
#[path = "drift/docs.rs"]
mod docs;
#[path = "drift/metrics.rs"]
mod metrics;
#[path = "drift/queries.rs"]
mod queries;
#[path = "drift/reference.rs"]
mod reference;
#[path = "drift/reference_text.rs"]
mod reference_text;
#[path = "drift/release.rs"]
mod release;
#[path = "drift/reliability.rs"]
mod reliability;
#[path = "drift/sbom.rs"]
mod sbom;
#[path = "drift/security.rs"]
mod security;
#[path = "drift/sizes.rs"]
mod sizes;
#[path = "drift/source.rs"]
mod source;
#[path = "drift/tree.rs"]
mod tree;
#[path = "drift/values.rs"]
mod values;
