//! Against a real kube-apiserver and etcd without nodes: schemas, rules, policies and rights as the
//! API server understands them. `tests/run api` starts one; alone they are reported as ignored.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod conformance;

#[path = "api_server/chart.rs"]
mod chart;
#[path = "api_server/conformance.rs"]
mod conforms;
#[path = "api_server/docs.rs"]
mod docs;
#[path = "api_server/identity.rs"]
mod identity;
#[path = "api_server/network.rs"]
mod network;
#[path = "api_server/pods.rs"]
mod pods;
#[path = "api_server/policies.rs"]
mod policies;
#[path = "api_server/programs.rs"]
mod programs;
#[path = "api_server/refusals.rs"]
mod refusals;
#[path = "api_server/refused_runs.rs"]
mod refused_runs;
#[path = "api_server/refused_tasks.rs"]
mod refused_tasks;
#[path = "api_server/runs.rs"]
mod runs;
#[path = "api_server/server.rs"]
mod server;
#[path = "api_server/stolen.rs"]
mod stolen;
#[path = "api_server/tasks.rs"]
mod tasks;
#[path = "api_server/template.rs"]
mod template;
#[path = "api_server/users.rs"]
mod users;
