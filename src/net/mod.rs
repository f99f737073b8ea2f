//! Sockets that know when their peer has gone.
//!
//! hyper notices some disconnects and not others: a pipelined byte, an unread request body or
//! `half_close(true)` blinds it. A [`WatchedListener`] hands out [`WatchedStream`]s; the [`Peer`]
//! of each one tells of FIN and RST whatever hyper reads.
//!
//! | the client | hyper alone | [`Peer::gone`] |
//! |---|---|---|
//! | closes, resets, or shuts down its write side | mostly | yes |
//! | does so behind a pipelined request or a stray byte | no | yes |
//! | resets while its upload lies unread | no | yes |
//! | closes behind an unread upload **larger than the socket buffers** | no | no: its FIN has not arrived |
//! | half-closes under `half_close(true)` and goes on reading | not a disconnect | not a disconnect |
//! | resets, or answers a write by RST, under `half_close(true)` | at the write | yes |
//!
//! TCP does not tell a close from a half-close until the server writes; choose with
//! [`WatchedListener::half_close`].
//!
//! # How
//! The watch is lazy: a `Peer` that nobody waits for costs nothing. The first [`Gone`] future
//! polled duplicates the descriptor and registers the duplicate with the runtime's reactor, so
//! that hyper's own registration stays untouched. It is driven by edges: one short look per burst
//! of arriving bytes, without a task, shared by all requests of the connection. The last `Gone`
//! dropped closes the duplicate, and so does the stream when it is dropped: TCP never stays open
//! for the watch.
//!
//! A write of the stream that is held up for some milliseconds waits for the end as well, and fails
//! at it: a server that cannot write polls no body, and no body's watch then tells anybody.
//!
//! Whatever the stream's own reads and writes reveal (end of file, a reset, a broken pipe) is
//! noted too, also while nothing is armed.
//!
//! On platforms other than Unix only those reads and writes are seen; no sampling is attempted.

#[cfg(feature = "axum")]
mod connect;
mod keepalive;
mod listener;
#[cfg(test)]
mod mute;
mod owed;
mod peer;
mod serve;
mod stream;
mod watch;

#[cfg(feature = "axum")]
pub use connect::{NotWatched, PeerAddr, PeerAddrLayer};
pub use listener::WatchedListener;
pub use peer::{Gone, Peer, PeerEnd};
pub use serve::{Serve, serve};
pub use stream::WatchedStream;
