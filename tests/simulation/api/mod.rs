//! A Kubernetes API server in memory, for tests that need thousands of runs, exact faults and paused
//! time. It keeps state as the real one does: resource versions, uids, generations, finalizers,
//! preconditions, the status subresource, merge patches, server-side apply of a single owner of
//! each field, lists by page and selector, watches with bookmarks and 410.
//!
//! What it does is held to a real kube-apiserver by one suite of tests that runs against both
//! (`tests/conformance`); a difference is a bug of this double. Not modelled: schemas and defaults,
//! conflicts between owners of a field, `PUT`, JSON patches, foreground deletion.
//!
//! - [`kinds`]: the resources that are served.
//! - [`call`]: a request as it was meant.
//! - [`store`]: the objects and the log of their changes.
//! - [`patch`]: merge patch and server-side apply.
//! - [`watch`]: the log as a stream.
//! - [`server`]: the HTTP edge, with faults at each request by [`server::Network`].

pub mod call;
pub mod kinds;
pub mod patch;
pub mod selector;
pub mod server;
pub mod store;
pub mod watch;

pub use self::{
    call::{Call, Verb},
    server::{ApiServer, End, Fate, Network},
    store::{Key, Refusal},
};
