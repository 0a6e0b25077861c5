//! The suite that holds the API server of the simulations to a real one: here, the real one.

use super::{
    conformance as cases,
    server::{client, namespace},
};

macro_rules! case {
    ($name:ident) => {
        #[tokio::test]
        #[ignore = "needs a kube-apiserver: tests/run api"]
        async fn $name() {
            let Some(client) = client().await else { return };
            let namespace = namespace(&client).await;
            cases::$name(&client, &namespace).await;
        }
    };
}

for_each_case!(case);
