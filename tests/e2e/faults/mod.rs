//! Faults on real nodes (`tests/run faults`): processes killed and frozen, links cut and slowed, disks
//! filled, a node lost and found. Each test runs tasks meanwhile, has witnesses write down what the
//! container runtime, the API server, the forge and a reader of the logs saw, and hands that history to
//! the checker. These witnesses tell nothing of leftovers, dead processes, secrets and commits, so that it judges
//! I1 to I8 and I12 here; docs/reliability.md has who judges the rest. What a test breaks is mended when it ends,
//! however it ends. The modules without a history (`api_outage`, `deadlines`, `follow_resumes`,
//! `gateway_restart`, `nodes`, `volume`, `wall_clock`) each hold one promise to one task.

mod api_outage;
mod deadlines;
mod deck;
mod fence;
mod follow_resumes;
mod full_disk;
mod gateway_frozen;
mod gateway_restart;
mod harm;
mod leadership;
mod lost_node;
mod nodes;
mod partitions;
mod slow_link;
pub(crate) mod trial;
mod volume;
mod wall_clock;
mod want;
mod witness;

/// One line for whoever watches the run; a figure or the seed is worth it also when all goes well.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "faults: {line}");
}
