//! The whole port in one process: real TLS, real HTTP/2, a reviewer that knows three kinds of token.

mod access;
mod certificates;
mod crowds;
mod follows;
mod sessions;
mod standbys;
mod support;
mod uploads;
