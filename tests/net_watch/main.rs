//! The watched listener over real sockets: every row of "what a client does", seen or rightly not.
#![allow(
    clippy::disallowed_methods,
    reason = "test servers are spawned on the test's own runtime and end with it"
)]

mod descriptors;
mod endings;
mod half_close;
mod http;
mod http_1_0;
mod raw;
mod serve;
mod support;
