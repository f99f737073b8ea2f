//! The token relay over real sockets: one row for each request, whatever becomes of it.

#[path = "../newsroom/client.rs"]
#[allow(dead_code, reason = "a client for other tests too")]
mod client;
mod harness;
mod leave;
mod shutdown;
mod upstream_fails;
mod whole;

/// The example's own parts.
#[path = "../../examples/token_relay"]
#[allow(unreachable_pub, reason = "the example's modules are its own crate's")]
mod parts {
    pub(crate) mod meter;
    pub(crate) mod relay;
    pub(crate) mod upstream;
    pub(crate) mod usage;
}
