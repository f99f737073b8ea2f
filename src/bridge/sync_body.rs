//! Bodies whose bytes come from blocking code.

mod produce;

use std::{
    fmt,
    future::Future,
    io,
    panic::Location,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use self::produce::{Out, whole};
use super::{
    context::{Close, Context},
    error::{BridgeError, BridgeErrorKind},
    handle::Bridge,
    local::is_blocking_directly,
    pipe::Pipe,
    pool::Pool,
    session::Producing,
};
use crate::{
    BodyError, BoxError, Cause, Outcome,
    scope::{ERROR_GAP, Gap},
};

/// How many bytes may wait for the client.
const BUFFER: usize = 64 * 1024;

/// A response body that blocking code writes.
///
/// The code, an iterator or a closure that is given a [`std::io::Write`], runs on the thread of its
/// request: [`Bridge::body_from_iter`] and [`Bridge::body_writer`] use the one that the request's
/// other sync code runs on, [`SyncBody::from_iter`] and [`SyncBody::writer`] one of their own. It
/// starts with the first poll, and is never more than the [`buffer`](Self::buffer) ahead of the
/// client. While a write waits, the request's loop is driven, so its local tasks and other calls
/// go on.
///
/// ```
/// use bodyguard::bridge::SyncBody;
/// use std::io::Write as _;
///
/// let body = SyncBody::writer(|out| {
///     for row in 0..1_000 {
///         writeln!(out, "{row};{}", row * row)?;
///     }
///     Ok(())
/// });
/// ```
///
/// What was written is on its way at once; there is nothing to flush. An empty chunk or write, and a
/// flush, only ask whether the body is still there.
///
/// # Errors
/// An error that the producer returns, and a panic in it, become the body's error: never a clean
/// end. So does a [`BridgeError`] when no thread can be had, and one of the kind
/// [`HeadBlocked`](super::BridgeErrorKind::HeadBlocked) when it is read before its head where it cannot
/// be.
///
/// Under a promised length over HTTP/1 a server asks no further than the last byte. A layer of this
/// crate holds that byte back for the code of its own request's bridge ([`Bridge::body_writer`] and its
/// siblings); what a body with a thread of its own does behind it is cut off, unseen.
///
/// # On drop
/// The producer's next write or flush fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe), and so
/// does the one that is waiting. The closure or iterator is dropped on its own thread. One that has not
/// been started, for want of a poll or of a free thread, is dropped with the body.
#[must_use = "a body does nothing unless polled"]
pub struct SyncBody {
    // Dropped in this order: the pipe is closed before the call is given up, so that the producer
    // sees a broken pipe rather than a cancelled wait; a context of its own is closed last.
    reader: Reader,
    stage: Stage,
    context: Option<Context>,
    session: Producing,
    begun: bool,
    gap: Duration,
}

type Running = Pin<Box<dyn Future<Output = Result<Result<(), BoxError>, BridgeError>> + Send>>;

enum Stage {
    /// In a mutex that is never locked, for the body to be `Sync`.
    Producing(Mutex<Running>),
    Draining(Result<(), BodyError>),
    Closing(Close, Result<(), BodyError>),
    Gap(Gap, BodyError),
    Failed(BodyError),
    Done,
}

impl SyncBody {
    /// The chunks of an iterator, on a thread of the [global pool](Pool::global).
    #[allow(
        clippy::should_implement_trait,
        reason = "FromIterator must consume its iterator at once and cannot ask for Send"
    )]
    #[track_caller]
    pub fn from_iter<I>(iter: I) -> Self
    where
        I: IntoIterator + Send + 'static,
        I::Item: Into<Bytes>,
    {
        let at = Location::caller();
        Self::in_pool(Pool::global(), |bridge| {
            Self::of_chunks(bridge, at, |_| whole(iter))
        })
    }

    /// The chunks of a fallible iterator, on a thread of the [global pool](Pool::global).
    #[track_caller]
    pub fn try_from_iter<I, D, E>(iter: I) -> Self
    where
        I: IntoIterator<Item = Result<D, E>> + Send + 'static,
        D: Into<Bytes>,
        E: Into<BoxError>,
    {
        let at = Location::caller();
        Self::in_pool(Pool::global(), |bridge| {
            Self::of_chunks(bridge, at, |_| iter)
        })
    }

    /// What a closure writes, on a thread of the [global pool](Pool::global).
    #[track_caller]
    pub fn writer<F>(write: F) -> Self
    where
        F: FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    {
        let at = Location::caller();
        Self::in_pool(Pool::global(), |bridge| Self::of_writes(bridge, at, write))
    }

    /// A body with a context of its own, on a thread of `pool`.
    ///
    /// The closure makes the body from the context's handle, and may register closers with it.
    /// They run before the body's end is seen; one that fails fails the body, and so does one that
    /// has not run within the pool's [`close_limit`](super::PoolBuilder::close_limit).
    pub fn in_pool(pool: Pool, make: impl FnOnce(&Bridge) -> Self) -> Self {
        let context = Context::new(pool);
        let mut body = make(&context.bridge());
        body.context = Some(context);
        body
    }

    /// Sets how many bytes may wait for the client (default 64 KiB).
    ///
    /// An iterator's chunk that is larger passes alone.
    pub fn buffer(self, bytes: usize) -> Self {
        self.reader.0.set_limit(bytes);
        self
    }

    /// Sets how long an error waits behind the last frame (default 10 ms).
    ///
    /// Under a layer its own [`error_gap`](crate::scope::ScopeLayer::error_gap), which says what it is for,
    /// comes on top.
    pub fn error_gap(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }

    fn new<P>(bridge: &Bridge, at: &'static Location<'static>, produce: P) -> Self
    where
        P: FnOnce(&mut Out<'_>) -> Result<(), BoxError> + Send + 'static,
    {
        let pipe = Arc::new(Pipe::new(BUFFER));
        let writer = Arc::clone(&pipe);
        let call = bridge.call_from(at, move |cx| produce(&mut Out { pipe: &writer, cx }));
        Self {
            reader: Reader(pipe),
            stage: Stage::Producing(Mutex::new(Box::pin(call))),
            context: None,
            session: Producing::new(bridge.session()),
            begun: false,
            gap: ERROR_GAP,
        }
    }

    /// What comes after the last frame: an error a little later, or hyper would drop the frame.
    fn after(&self, result: Result<(), BodyError>) -> Stage {
        match result {
            Ok(()) => Stage::Done,
            Err(error) if self.begun => Stage::Gap(Gap::new(self.gap, None), error),
            Err(error) => Stage::Failed(error),
        }
    }
}

impl Body for SyncBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Producing(call) => {
                    let call = call.get_mut().unwrap_or_else(PoisonError::into_inner);
                    if let Poll::Ready(result) = call.as_mut().poll(cx) {
                        this.stage = Stage::Draining(match result {
                            // Its own failure, whatever that of a body was which it has read.
                            Ok(result) => {
                                result.map_err(|error| BodyError::new(error).of(Outcome::Failed))
                            }
                            Err(error) => Err(broken_by(Arc::new(error))),
                        });
                        continue;
                    }
                    let frame = this.reader.0.poll_read(cx);
                    if frame.is_pending() && is_blocking_directly(&this.session.0) {
                        // Sync code of the same thread collects this body: below the producer on
                        // the stack, it could not read while the producer waits for room.
                        this.reader.0.set_limit(usize::MAX);
                    }
                    let frame = ready!(frame);
                    this.begun = true;
                    return Poll::Ready(Some(Ok(Frame::data(frame))));
                }
                Stage::Draining(result) => {
                    if let Some(frame) = this.reader.0.read_now() {
                        this.begun = true;
                        return Poll::Ready(Some(Ok(Frame::data(frame))));
                    }
                    let result = std::mem::replace(result, Ok(()));
                    if let Some(context) = &this.context {
                        this.stage = Stage::Closing(context.close(), result);
                        continue;
                    }
                    this.stage = this.after(result);
                }
                Stage::Closing(close, result) => {
                    let report = ready!(Pin::new(close).poll(cx));
                    let result = std::mem::replace(result, Ok(()));
                    let failures = report.failures();
                    let first = || failures.first().cloned().map(broken_by);
                    let error = result.err().or_else(first);
                    let error = error.map(|error| error.and(failures));
                    this.stage = this.after(error.map_or(Ok(()), Err));
                }
                Stage::Gap(gap, error) => {
                    ready!(gap.poll(cx));
                    this.stage = Stage::Failed(error.clone());
                }
                Stage::Failed(error) => {
                    let error = error.clone();
                    this.stage = Stage::Done;
                    return Poll::Ready(Some(Err(error)));
                }
                Stage::Done => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match self.stage {
            Stage::Done => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

impl fmt::Debug for SyncBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncBody").finish_non_exhaustive()
    }
}

/// The error of a body whose own code, or closer, came to this.
fn broken_by(cause: Cause) -> BodyError {
    let error: Option<&BridgeError> = cause.downcast_ref();
    let outcome = match error.map(BridgeError::kind) {
        Some(BridgeErrorKind::Panicked) => Outcome::Panicked,
        _ => Outcome::Failed,
    };
    BodyError::from(cause).of(outcome)
}

/// The reader's end; the writer's knows when it has gone.
struct Reader(Arc<Pipe>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.close();
    }
}
