//! Tests that take a process, a node or the release away from everybody: they run alone, one after the other, after
//! all scenarios, and leave the system as they found it.

mod api_outage;
mod deadlines;
mod fence;
mod follow_resumes;
mod gateway_restart;
mod kill_points;
mod leadership;
mod nodes;
mod notes;
mod uninstall;
mod upgrade;
