//! The one machine under all views: what a request started ends when its body does.
//!
//! What it tells `tracing` and `metrics` is in [Observability](crate#observability).

// | file | what it is |
// |---|---|
// | `detector` | how a body ended, as a pure state machine |
// | `machine`, `state` | the steps of a scope's life, and what it knows behind its lock |
// | `entry` | the scope in the request's extensions: joining, children, views |
// | `children` | scopes under a scope, and what each is told of the other |
// | `layer`, `service`, `future`, `body` | the layer and its owner, written once for all views |
// | `head` | what a scope notes of its response's head |
// | `movable`, `cell`, `stall` | the mode in which an owner can be taken from its server, and the stall watchdog |
// | `leaving` | what becomes of a scope whose client stops reading, or leaves |
// | `inner` | how the inner body is asked |
// | `judge` | what a step of the inner body means for its client |
// | `options`, `settings` | what layers can set, and how that of one scope changes |
// | `rpc` | how a gRPC call came out, as its headers and trailers say |
// | `owner`, `finisher` | the owner's two guards: one starts the end, one tears down |
// | `tasks`, `spawning`, `tracked`, `joining` | the tasks, how they come and end, one of them, and how they are joined |
// | `stream_id`, `refusal` | which stream has ended, and what becomes of a refused task |
// | `closers`, `register` | one closer, and how closers come, run early or late, and end |
// | `hold` | what keeps a scope open past its body |
// | `annex` | the door for what a view keeps beside them, and the scope ends with |
// | `signals` | what is told to those who wait for the end |
// | `teardown`, `driving` | what happens at the end, in its order, whether the server polls or not |
// | `finish`, `observe` | its steps and the report, and what goes out of that |
// | `span` | the span of `tracing` that all of it runs in |
// | `verdict` | what closers and the client are told of the end |
// | `failure`, `limit` | panics and failures of our own, and time limits, as values |
// | `connection`, `upload` | what is known of the client: its connection, its request body |
// | `member` | a scope as its supervisor sees it: snapshots, shutdown |
// | `failing`, `gap` | how a body that fails says so: a last frame, a wait for slow clients, the error |
// | `finishing` | a shutdown that lets a response finish, for a time |
// | `close` | awaited close for consumers inside the process |
// | `standalone` | bodies with a scope of their own, written once for all views |

mod annex;
mod body;
mod cell;
mod children;
mod close;
mod closers;
mod connection;
mod detector;
mod driving;
mod entry;
mod failing;
mod failure;
mod finish;
mod finisher;
mod finishing;
mod future;
mod gap;
mod head;
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
mod pace;
mod refusal;
mod register;
mod rpc;
mod service;
mod settings;
mod signals;
mod span;
mod spawning;
mod stall;
mod standalone;
mod state;
mod stream_id;
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
pub(crate) use connection::Connection;
#[cfg(feature = "compression")]
pub(crate) use entry::is_encoded_outside;
pub(crate) use entry::sealed::{Sealed, Standalone};
pub use entry::{MissingLayer, View};
#[cfg(feature = "compression")]
pub(crate) use failure::broken_length;
pub(crate) use failure::quietly;
pub use failure::{Failure, FailureKind};
pub(crate) use failure::{Payload, contained, is_same, sources, told_whole};
pub use future::ScopeFuture;
#[cfg(any(feature = "bridge", feature = "compression"))]
pub(crate) use gap::{ERROR_GAP, Gap};
#[cfg(feature = "compression")]
pub(crate) use gap::{all_but_a_byte, is_patient};
pub use hold::Hold;
pub use layer::{Fixed, Mode, Movable, ScopeLayer};
pub(crate) use limit::Limit;
#[cfg(feature = "net")]
pub(crate) use limit::timer;
pub(crate) use machine::Scope;
pub use movable::{MovableBody, MovableFuture};
pub use options::{FailurePolicy, OnLeave, Shutdown};
pub(crate) use refusal::Refusal;
pub use service::ScopeService;
pub(crate) use signals::Lazy;
#[cfg(feature = "bridge")]
pub(crate) use span::Span;
pub(crate) use spawning::Refused;
pub use standalone::ViewBody;
pub(crate) use standalone::unknown;
pub(crate) use stream_id::StreamId;
pub(crate) use tasks::{Feed, TaskKey, TaskKind};
pub(crate) use tracked::Panicked;
pub use upload::{DrainRequest, DrainRequestService, RequestBody};
pub(crate) use verdict::LastWords;
