//! The channel as a body of its own.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{FrameReceiver, FrameSender, channel};
use crate::BodyError;

/// A body fed by [`FrameSender`]s, bounded in bytes.
///
/// It never fails: it ends cleanly once every sender is gone, for whatever reason they went. A
/// producer that panics looks like one that is done; where that matters, give the producers to a
/// task group, which makes their failure the body's. And the other way round: a group's task that returns
/// the [`Closed`](super::Closed) of a `FrameBody` that went while its response goes on, replaced by
/// another, has failed; with a body of the group it has not.
///
/// ```
/// use bodyguard::task_group::FrameBody;
/// use http_body_util::BodyExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, body) = FrameBody::channel(16 * 1024);
/// sender.send("two frames ").await?;
/// sender.send("leave as one").await?;
/// drop(sender);
/// assert_eq!(body.collect().await?.to_bytes(), "two frames leave as one");
/// # Ok(())
/// # }
/// ```
///
/// # On drop
/// The channel closes: senders that wait, or send later, get [`Closed`](super::Closed). What was
/// buffered is dropped.
///
/// # Compared with `mpsc`, `ReceiverStream` and `StreamBody`
/// Those are bounded in messages and hand every message to the server by itself. Here the bound is
/// in bytes and small frames that are ready together leave together.
#[derive(Debug)]
#[must_use = "a body does nothing unless it is polled"]
pub struct FrameBody {
    receiver: FrameReceiver,
}

impl FrameBody {
    /// A body and its first sender, with room for `bound` bytes.
    ///
    /// A frame larger than `bound` passes alone, when nothing else is buffered. 0 counts as 1: so does
    /// every frame then.
    pub fn channel(bound: usize) -> (FrameSender, Self) {
        let (sender, receiver) = channel(bound);
        (sender, Self { receiver })
    }

    /// Lets every frame leave as it was sent. Off by default: small ready frames leave merged.
    pub fn preserve_frames(mut self) -> Self {
        self.receiver.set_preserve_frames(true);
        self
    }
}

impl Body for FrameBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Two closures in its place would move the frame twice more.
        match self.receiver.poll_frame(cx) {
            Poll::Ready(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.receiver.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        let (buffered, more) = self.receiver.remaining();
        let mut hint = SizeHint::new();
        hint.set_lower(buffered as u64);
        if !more {
            hint.set_upper(buffered as u64);
        }
        hint
    }
}
