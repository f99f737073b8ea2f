//! The showcase as its users run it: the built example, over real sockets.
//!
//! `cargo test` builds the example first. To run these tests alone:
//! `cargo build --example newsroom && cargo test --test newsroom`.

mod broken;
mod client;
mod events;
mod export;
mod heads;
mod leave;
mod pages;
mod server;
mod shutdown;

/// The example's own parts, with their tests: an example that is tested is not built to be run.
#[path = "../../examples/newsroom"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the tests here use a part of what the example does"
)]
mod parts {
    mod db;
    mod feeds;
    mod report;
}
