//! The suite that holds the API server of the simulations to a real one: here, the double.

use serde_json::json;

use super::{
    api::{ApiServer, kinds::kind, server::Calm},
    clock,
    director::rule,
    on_paused_time,
};
use crate::conformance as cases;

const NAMESPACE: &str = "conformance";

/// A server that has compacted its log before the test begins.
fn server() -> ApiServer {
    clock::begin();
    let server = ApiServer::new(Calm, clock::of_api_server);
    server.with(|store| {
        store.rule(Box::new(rule));
        for name in [NAMESPACE, "default"] {
            store.create(kind("namespaces"), None, json!({"metadata": {"name": name}})).unwrap();
        }
        store.compact();
    });
    server
}

macro_rules! case {
    ($name:ident) => {
        #[test]
        fn $name() {
            on_paused_time(async {
                let client = server().client("test");
                cases::$name(&client, NAMESPACE).await;
            });
        }
    };
}

for_each_case!(case);
