//! The one machine under all views: what a request started ends when its body does.
//!
//! # What goes out
//! With the feature `tracing`: for every response the event `response ended`, target `bodyguard`, level
//! `DEBUG`, or `WARN` if anything failed. Its fields: `scope`, `method`, `path` (no query), `outcome`,
//! `status`, `bytes`, `frames`, `client_gone`, `first_frame_ms`, `duration_ms`, `teardown_ms`,
//! `closers_run`, `closers_failed`, `closers_unrun`, `tasks_joined`, `tasks_failed`, `tasks_cancelled`,
//! `tasks_panicked`, `stuck` (how many), `errors` (how many), `error` (the first). Closers that did not
//! run to their end, and a hook that panicked, are events of level `ERROR` besides.
//!
//! With the feature `metrics`:
//!
//! | metric | kind | label |
//! |---|---|---|
//! | `bodyguard_responses_total` | counter | `outcome` |
//! | `bodyguard_response_duration_seconds` | histogram | `outcome` |
//! | `bodyguard_response_bytes_total` | counter | |
//! | `bodyguard_first_frame_seconds` | histogram | |
//! | `bodyguard_teardown_seconds` | histogram | |
//! | `bodyguard_closers_run_total` | counter | |
//! | `bodyguard_closers_failed_total` | counter | |
//! | `bodyguard_closers_unrun_total` | counter | |
//! | `bodyguard_tasks_failed_total` | counter | |
//! | `bodyguard_tasks_panicked_total` | counter | |
//! | `bodyguard_tasks_cancelled_total` | counter | |
//! | `bodyguard_compression_streams` | gauge | |
//! | `bodyguard_compression_parked` | gauge | |
//! | `bodyguard_compression_resident` | gauge | |
//! | `bodyguard_compression_bytes_in_total` | counter | |
//! | `bodyguard_compression_bytes_out_total` | counter | |
//!
//! Durations run from the call to the first data frame, to the start of the end, and from there to the
//! report. The last five are
//! those of `CompressionStats`, summed over all layers.

// | file | what it is |
// |---|---|
// | `detector` | how a body ended, as a pure state machine |
// | `machine`, `state` | the steps of a scope's life, and what it knows behind its lock |
// | `entry` | the scope in the request's extensions: joining, children, views |
// | `layer`, `service`, `future`, `body` | the layer and its owner, written once for all views |
// | `movable`, `cell`, `stall` | the mode in which an owner can be taken from its server, and the stall watchdog |
// | `leaving` | what becomes of a scope whose client stops reading, or leaves |
// | `inner`, `failing` | how the inner body is asked, and how a body that fails says so |
// | `judge` | what a step of the inner body means for its client |
// | `options`, `settings` | what layers can set, and how that of one scope changes |
// | `rpc` | how a gRPC call came out, as its headers and trailers say |
// | `owner` | the owner's two guards: one starts the end, one tears down |
// | `tasks`, `spawning`, `tracked`, `joining` | the tasks, how they come and end, one of them, and how they are joined |
// | `teardown`, `closers` | what happens at the end, in its order |
// | `annex` | the door for what a view keeps beside them, and the scope ends with |
// | `connection`, `upload` | what is known of the client: its connection, its request body |
// | `register` | the doors: closers, holds; the head |
// | `member` | a scope as its supervisor sees it: snapshots, shutdown |
// | `close` | awaited close for consumers inside the process |

mod annex;
mod body;
mod cell;
mod close;
mod closers;
mod connection;
mod detector;
mod driving;
mod entry;
mod failing;
mod failure;
mod finish;
mod future;
mod hold;
mod inner;
mod joining;
mod judge;
mod layer;
mod leaving;
mod limit;
mod machine;
mod member;
mod movable;
mod observe;
mod options;
mod owner;
mod register;
mod rpc;
mod service;
mod settings;
mod signals;
mod spawning;
mod stall;
mod standalone;
mod state;
mod tasks;
mod teardown;
mod tracked;
mod upload;
mod verdict;

#[cfg(feature = "bridge")]
pub(crate) use annex::{Annex, AnnexClosed, AnnexFuture};
pub use body::ScopeBody;
pub use close::{CloseError, Closing, close, closing};
pub(crate) use closers::Closer;
#[cfg(feature = "bridge")]
pub(crate) use closers::Unrun;
#[cfg(feature = "compression")]
pub(crate) use connection::Connection;
pub(crate) use entry::sealed::Sealed;
pub use entry::{MissingLayer, View};
#[cfg(feature = "compression")]
pub(crate) use failure::broken_length;
pub(crate) use failure::quietly;
pub use failure::{Failure, FailureKind};
pub(crate) use failure::{MOST_SOURCES, Payload, contained, is_same, sources};
pub use future::ScopeFuture;
pub use hold::Hold;
pub use layer::{Fixed, Mode, Movable, ScopeLayer};
#[cfg(feature = "net")]
pub(crate) use limit::timer;
#[cfg(any(feature = "bridge", feature = "compression"))]
pub(crate) use limit::{ERROR_GAP, Limit};
pub(crate) use machine::Scope;
pub use movable::{MovableBody, MovableFuture};
pub use options::{FailurePolicy, OnLeave, Shutdown};
pub use service::ScopeService;
pub(crate) use spawning::Refused;
pub(crate) use tasks::{Feed, TaskKey, TaskKind};
pub use upload::{DrainRequest, DrainRequestService, RequestBody};
pub(crate) use verdict::LastWords;
