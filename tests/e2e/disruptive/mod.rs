//! Tests that take a process, a node or the release away from everybody: they run alone, one after the other, after
//! all scenarios, and leave the system as they found it.

mod fence;
mod follow_resumes;
mod kill_points;
mod nodes;
mod uninstall;
mod upgrade;
