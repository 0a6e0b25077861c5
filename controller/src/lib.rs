//! The controller of agent-operator.
//!
//! [`run`] owns every task; an unexpected end of one ends the process. The tasks and what goes in and
//! out of them:
//!
//! | task | in | out |
//! |---|---|---|
//! | `reconcile` ([`reconcile::run`], its own tasks are listed there) | watches, `NodeEvent`s, [`lease::Leadership`] | API writes, [`fleet::Command`]s |
//! | `election` ([`lease::Election`]) | the Lease | [`lease::Leadership`] (watch) |
//! | `grpc` ([`grpc::serve`], one task a call, and the renewal of certificates) | connections, commands, catalogue, stream store | `NodeEvent`s (bounded), stream store, events to followers |
//! | `watchdog` ([`fleet::watchdog`]) | times of the sessions | ends silent sessions, metrics |
//! | `catalog` ([`catalog::run`]) | watches | the catalogue, metrics, traces |
//! | `sweeper` | catalogue | stream store, metrics |
//! | `leading` | [`lease::Leadership`] | metrics |
//! | `http` ([`health::serve`]) | connections | `/livez`, `/readyz`, `/metrics` |

pub mod apply;
pub mod args;
pub mod assignment;
pub mod catalog;
pub mod check;
pub mod clock;
pub mod credentials;
pub mod decide;
pub mod events;
pub mod fleet;
pub mod grpc;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod nodes_inbox;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod run;
pub mod settings;
pub mod streams;
pub mod tls;
pub mod uninstall;
