//! The controller of agent-operator.

pub mod clock;
pub mod decide;
pub mod fleet;
pub mod lease;
pub mod plan;
pub mod settings;
pub mod streams;
pub mod telemetry; // Done, with `tls`: certificates, hot-reloading rustls ServerConfig (`Tls::start`, `server_config`, `keep_fresh`).
pub mod tls;
