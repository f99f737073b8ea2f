//! Bodies made of tasks.

use std::{
    fmt,
    future::Future,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};

use super::{
    channel::{ChannelHandle, FrameReceiver, FrameSender, channel},
    group::{Forgiving, TaskGroup},
    keep_alive::KeepAlive,
    merge::Sources,
};
use crate::{
    BodyError, TaskResult,
    scope::{
        Feed, LastWords, Scope, ScopeBody, Sealed, Standalone, StreamId, TaskKey, TaskKind,
        ViewBody, unknown,
    },
};

/// Bytes that producers may be ahead of the client, unless set otherwise; a larger frame passes alone.
const BUFFER: usize = 16 * 1024;

/// The body of [`TaskGroup::body`]: ends when all senders are gone, under the group's scope.
///
/// It never fails by itself; the scope's body around it does, once it has seen how the tasks ended.
/// So give it to a response inside the layer of its group: sent from outside, it ends cleanly whatever
/// they came to. Producers are ahead of the client by 16 KiB at most, and one larger frame.
///
/// **On drop**: senders get [`Closed`](super::Closed); the scope cancels and joins the tasks. If it
/// is replaced by another body while the response goes on, its producer is aborted; tasks of the
/// group are the response's, and stay.
#[must_use = "a body does nothing unless it is polled"]
pub struct GroupBody {
    receiver: FrameReceiver,
    scope: Arc<Scope>,
    start: Option<Start>,
    last_words: Option<LastWords>,
    keep_alive: Option<Box<KeepAlive>>,
    producer: Producer,
}

/// Spawns the producer.
type Start = Box<dyn FnOnce(&Arc<Scope>) -> Option<TaskKey> + Send>;

impl Feed for ChannelHandle {
    fn refuse(&self) -> bool {
        self.close_senders()
    }

    fn cut(&self) -> Option<StreamId> {
        Self::cut(self)
    }

    fn enter(&self) {
        self.add_sender();
    }

    fn leave(&self) {
        self.remove_sender();
    }
}

impl GroupBody {
    pub(super) fn new<F, Fut>(
        group: &TaskGroup,
        at: &'static Location<'static>,
        producer: F,
    ) -> Self
    where
        F: FnOnce(FrameSender) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        let (sender, receiver) = channel(BUFFER);
        let handle = receiver.handle();
        let scope = group.scope().clone();
        scope.feed(Arc::new(handle));
        let span = scope.span_here();
        let start: Start = Box::new(move |scope| {
            let _entered = span.enter();
            let producer = Forgiving::new(scope, producer(sender));
            scope.spawn(TaskKind::Plain, at, producer).ok()
        });
        Self {
            receiver,
            scope,
            start: Some(start),
            last_words: None,
            keep_alive: None,
            producer: Producer(None),
        }
    }

    /// Lets every frame leave as it was sent. Off by default: small ready frames leave merged.
    pub fn preserve_frames(mut self) -> Self {
        self.receiver.set_preserve_frames(true);
        self
    }

    /// How many bytes producers may be ahead of the client (16 KiB); a larger frame passes alone.
    ///
    /// With 1 every frame passes alone: a queue of one. 0 counts as 1.
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.receiver.set_bound(bytes);
        self
    }

    /// Gives `frame` by itself where nothing was given for `every`, so that proxies do not end a silent stream.
    ///
    /// For event streams that is a comment, which clients pass over, every 15 s or so:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use bodyguard::{TaskGroup, task_group::{GroupBody, event}};
    /// # use tokio::sync::mpsc;
    /// fn feed(group: &TaskGroup, mut news: mpsc::Receiver<String>) -> GroupBody {
    ///     let body = group.body(|tx| async move {
    ///         while let Some(item) = news.recv().await {
    ///             tx.send(event("news", &item)).await?;
    ///         }
    ///         Ok(())
    ///     });
    ///     body.keep_alive(Duration::from_secs(15), ":\n\n")
    /// }
    /// ```
    ///
    /// Counted from the last frame that was given, such a one included, or from the first wait. It stands
    /// between frames as they were sent, so these have to be whole events; what goes through a
    /// [`FrameWriter`](super::FrameWriter) is cut where the buffer is full. Once senders are gone or refused
    /// there is none: not in the teardown, nor behind trailers, a failure or the last frame of a shutdown.
    ///
    /// A server that does not ask gets none, and one at most once it does. It is content like any other
    /// frame: counted in the report, encoded and flushed by compression further out, and not for a body of a
    /// promised length or of frames that are encoded already. None is given without timers in the runtime, for
    /// an `every` of zero, or if `frame` is empty.
    pub fn keep_alive(mut self, every: Duration, frame: impl Into<Bytes>) -> Self {
        self.keep_alive = KeepAlive::new(every, frame.into());
        self
    }

    /// What a body that fails says to its client last: for event streams, an `error` event.
    ///
    /// ```
    /// # use bodyguard::{TaskGroup, task_group::{GroupBody, event}};
    /// # fn feed(group: &TaskGroup) -> GroupBody {
    /// let body = group.body(|tx| async move { Ok(tx.send(event("news", "rain")).await?) });
    /// body.on_failure(|error| Some(event("error", &format!("{error:#}")).into()))
    /// # }
    /// ```
    ///
    /// So the client reads the text of the application's own errors, all of them: where that is not for
    /// strangers, say less, as `error.downcast_ref` tells. `{error}` alone says only that the body failed,
    /// and [`event`](super::event) keeps a text of several lines one event.
    ///
    /// `words` sees the error, whatever the reason of the failure, once closers have run. Its frame follows
    /// all frames sent before, and the error follows it after the layer's `error_gap`, so that the transfer
    /// is still a broken one. Its panic is contained, and a further cause of the error. Frames that may end in
    /// the middle of an event call for one that begins with `\n\n`. Not called under a promised length, nor if the client has gone, nor for a body with a
    /// Content-Encoding at the head of its scope: plain text would be no part of it, so compression goes
    /// outside of the scope's layers. The frame counts among the report's frames and bytes.
    pub fn on_failure<F>(mut self, words: F) -> Self
    where
        F: Fn(&BodyError) -> Option<Bytes> + Send + Sync + 'static,
    {
        self.last_words = Some(Arc::new(words));
        self
    }
}

impl GroupBody {
    /// At the first poll.
    #[cold]
    fn begin(&mut self) -> Result<(), NotStarted> {
        let Some(start) = self.start.take() else {
            return Ok(());
        };
        // Not before: a body that was replaced speaks for no other.
        if let Some(words) = self.last_words.take() {
            self.scope.on_failure(words);
        }
        match start(&self.scope) {
            Some(task) => self.producer = Producer(Some((self.scope.clone(), task))),
            // The stream is refused, and the scope knows why it fails.
            None if self.scope.has_failed_task() => {}
            None => {
                // No runtime, or a scope that has ended while its body lives on elsewhere: an
                // empty stream would look whole.
                self.receiver.close();
                return Err(NotStarted);
            }
        }
        Ok(())
    }

    /// Nothing is there to be given.
    fn poll_silent(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.keep_alive {
            Some(keep_alive) => {
                let frame = keep_alive.poll(&self.scope, cx);
                frame.map(|frame| Some(Ok(Frame::data(frame))))
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for GroupBody {
    /// One that was never begun has no part in the response.
    fn drop(&mut self) {
        if self.start.is_some() {
            self.receiver.close();
            if let Some(stream) = self.receiver.handle().cut() {
                self.scope.unfeed(stream);
            }
        }
    }
}

/// Aborts the producer of a body that is dropped before its end, unless its response is ending:
/// the teardown sees to it then.
struct Producer(Option<(Arc<Scope>, TaskKey)>);

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some((scope, task)) = self.0.take() {
            scope.abort_replaced(task);
        }
    }
}

impl Body for GroupBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.start.is_some() {
            if let Err(error) = self.begin() {
                return Poll::Ready(Some(Err(BodyError::new(error))));
            }
        }
        let Poll::Ready(next) = self.receiver.poll_frame(cx) else {
            return self.poll_silent(cx);
        };
        if let Some(keep_alive) = &mut self.keep_alive {
            keep_alive.note_given();
        }
        if next.as_ref().is_none_or(Frame::is_trailers) {
            self.producer.0 = None;
        }
        Poll::Ready(next.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The producer of a body could not be spawned.
#[derive(Debug)]
struct NotStarted;

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("producer not started: its response has ended, or there is no runtime")
    }
}

impl std::error::Error for NotStarted {}

impl fmt::Debug for GroupBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBody")
            .field("started", &self.start.is_none())
            .finish_non_exhaustive()
    }
}

/// A body made of tasks that it owns. Needs no layer.
///
/// `producer` is the group's own future: it gets the group, to spawn more tasks, and the first
/// sender. Nothing runs before the first poll. Producers are ahead of the client by 16 KiB at most, and
/// one larger frame.
///
/// Returned from a layered axum handler, or by [`into_http`](ViewBody::into_http), the group becomes a child
/// of the request's scope, so that its supervisor waits for it. A `Response::new` around it does not tell
/// the layers: their drain knows nothing of its tasks. See [`ViewBody`] for what it has in common with the
/// bodies of other views.
///
/// **On drop**: all tasks are cancelled and joined by a task on the runtime where it was made.
pub type TaskGroupBody = ViewBody<ScopeBody<GroupBody>, TaskGroup>;

impl TaskGroupBody {
    /// A body fed by the tasks of a group of its own.
    #[track_caller]
    pub fn new<F, Fut>(producer: F) -> Self
    where
        F: FnOnce(TaskGroup, FrameSender) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        Self::answering(&unknown(), producer)
    }

    /// The same as the answer to a request, which reports then name.
    ///
    /// A [`net::Peer`](crate::net::Peer) in its extensions confirms that the client has gone.
    #[track_caller]
    pub fn answering<R, F, Fut>(request: &Request<R>, producer: F) -> Self
    where
        F: FnOnce(TaskGroup, FrameSender) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        let scope = Scope::answering(request, false);
        let group = TaskGroup::through(scope.clone());
        let theirs = group.clone();
        let producer = move |sender| producer(theirs, sender);
        Self::under(scope, GroupBody::new(&group, Location::caller(), producer))
    }

    /// Lets every frame leave as it was sent. Off by default: small ready frames leave merged.
    pub fn preserve_frames(mut self) -> Self {
        if let Some(body) = self.body.inner_mut() {
            body.receiver.set_preserve_frames(true);
        }
        self
    }

    /// How many bytes producers may be ahead of the client (16 KiB); 0 counts as 1. See
    /// [`GroupBody::buffer`].
    pub fn buffer(mut self, bytes: usize) -> Self {
        if let Some(body) = self.body.inner_mut() {
            body.receiver.set_bound(bytes);
        }
        self
    }

    /// The body of merged streams. See [`Sources`].
    #[track_caller]
    pub fn merge(sources: Sources) -> Self {
        Self::new(move |group, tx| {
            sources.start(&group, tx);
            async { Ok(()) }
        })
    }

    /// Gives `frame` by itself where nothing was given for `every`. See [`GroupBody::keep_alive`].
    pub fn keep_alive(mut self, every: Duration, frame: impl Into<Bytes>) -> Self {
        if let Some(body) = self.body.inner_mut() {
            body.keep_alive = KeepAlive::new(every, frame.into());
        }
        self
    }

    /// What the body says to its client last if it fails. See [`GroupBody::on_failure`].
    ///
    /// Compression in any place has it inside. A body of frames that are encoded already needs a frame in their
    /// coding, or none: what its head says is not known here.
    pub fn on_failure<F>(mut self, words: F) -> Self
    where
        F: Fn(&BodyError) -> Option<Bytes> + Send + Sync + 'static,
    {
        if let Some(body) = self.body.inner_mut() {
            body.last_words = Some(Arc::new(words));
        }
        self
    }
}

impl<T> ViewBody<T, TaskGroup> {
    /// The group, to spawn tasks from outside.
    pub fn group(&self) -> &TaskGroup {
        &self.view
    }
}
