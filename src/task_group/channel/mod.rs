//! The frame channel: many producers, one body, bounded in bytes.
//!
//! # Why not a queue of messages
//!
//! With small frames the cost of a stream is the cost per message of its channel and of the
//! server's chunk encoder, not the socket. So there is one lock around one buffer: small frames
//! are appended to it and leave as one, large ones are queued whole, and the bound counts bytes.
//!
//! # Invariants
//!
//! 1. `buffered + reserved <= bound`, or a single frame larger than the bound has all of it.
//! 2. Who waits, waits in line. A newcomer is never let in before the line; the line is served
//!    from the front only, so tickets are granted in the order they were drawn.
//! 3. A grant reserves room, it moves no data: only the sender's own poll puts its frame in. So a
//!    `send` that is dropped before it was ready was not sent; what it had reserved goes to the
//!    next in line.
//! 4. If somebody waits in line, then the buffer is not empty (the receiver's next poll serves
//!    the line), or a woken sender holds a grant (its poll or its drop serves the line), or the
//!    receiver is awake.
//! 5. If the receiver waits, then its waker is in the state, the buffer is empty and no loan is
//!    out. Whoever changes that takes the waker. A flag beside the lock says whether it is there, and the receiver
//!    knows whose it was: if it is that one who asks again, there is nothing to find.
//!    A loan is a grant to a writer or a sink: their waits have no future whose drop would show that
//!    they were given up. The receiver that finds nothing a few times takes loans back.
//! 6. Under the lock nobody is woken, and no waker or frame of the user's is dropped: either may
//!    run code that comes back here. `After` carries them out.
//!
//! There is one lock and nothing is called under it, so there is no order of locks to get wrong.

// | file | what it is |
// |---|---|
// | `state`, `shared` | the whole as one synchronous state, and the lock around it |
// | `buffer` | what has been accepted and not yet taken |
// | `line` | who waits for room, and what is granted to them |
// | `after` | what is woken and dropped once the lock is released |
// | `sender`, `writer`, `sink` | the producers' end, in three shapes |
// | `receiver`, `body` | the other end, for the bodies of groups and as one of its own |
// | `error` | what a producer is told when a frame cannot go in |

mod after;
mod body;
mod buffer;
mod error;
mod line;
mod receiver;
mod sender;
mod shared;
mod sink;
mod state;
mod writer;

#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use self::receiver::{ChannelHandle, FrameReceiver};
pub use self::{
    body::FrameBody,
    error::{Closed, TrySendError},
    sender::{FrameSender, SendFrame},
    sink::FrameSink,
    writer::FrameWriter,
};

use self::shared::Shared;
use crate::sync::Arc;

/// Makes a channel that holds at most `bound` bytes, or one frame larger than that.
///
/// A bound of 0 counts as 1: every frame then passes alone.
pub(crate) fn channel(bound: usize) -> (FrameSender, FrameReceiver) {
    let shared = Arc::new(Shared::new(bound));
    (FrameSender::new(shared.clone()), FrameReceiver::new(shared))
}
