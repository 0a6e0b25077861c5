//! The life of a release on a cluster of somebody's own: install, look, upgrade, mend, remove. Each of these tests
//! takes the release, the registry or the API server away from everybody, so they run alone, one after the other, and
//! leave the system as they found it.

mod company;
mod delivery;
mod notes;
mod open_network;
mod pages;
mod platform;
mod slow_api_server;
pub(crate) mod telemetry;
mod tutorial;
mod uninstall;
mod upgrade;
