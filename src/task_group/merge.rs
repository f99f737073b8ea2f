//! Ready-made streams, merged into one body.

use std::{
    borrow::Cow,
    error::Error,
    fmt,
    future::{Future, poll_fn},
    panic::Location,
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use futures_core::Stream;

use super::{
    channel::FrameSender,
    group::{Forgiving, TaskGroup},
};
use crate::{
    BoxError, TaskResult,
    scope::{Failure, Panicked, Payload, Standalone, TaskKind, contained},
};

/// Streams to be merged by [`TaskGroup::merge`] or [`TaskGroupBody::merge`], each with a name.
///
/// Each source is a task of the group and waits for the client by itself, so a slow one holds up
/// nobody. Items of one source keep their order. The body ends once every source has.
///
/// ```
/// use std::convert::Infallible;
///
/// use bodyguard::task_group::{Sources, TaskGroupBody};
/// use http_body_util::BodyExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bodyguard::BodyError> {
/// let news = tokio_stream::iter([Ok::<_, Infallible>("news\n")]);
/// let weather = tokio_stream::iter([Ok("weather\n"), Err(std::io::Error::other("no sky"))]);
/// let sources = Sources::new().source("news", news).optional("weather", weather);
/// let body = TaskGroupBody::merge(sources);
/// assert_eq!(body.collect().await?.to_bytes().len(), 13);
/// # Ok(())
/// # }
/// ```
///
/// **On drop**: the streams are dropped; none was polled.
///
/// Compared with `select` and `merge` of other crates: those end or fail as a whole, and say not
/// which stream it was.
///
/// [`TaskGroupBody::merge`]: super::TaskGroupBody::merge
#[derive(Default)]
#[must_use = "sources do nothing unless they are merged into a body"]
pub struct Sources {
    starts: Vec<Start>,
}

type Start = Box<dyn FnOnce(&TaskGroup, FrameSender) + Send>;

impl Sources {
    /// No sources yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source whose failure fails the group.
    ///
    /// The error is a [`SourceError`] with its name. So is that of a panic, which has a [`Failure`] as its
    /// source, and counts as the panic it is.
    #[track_caller]
    pub fn source<S, T, E>(self, name: impl Into<Cow<'static, str>>, stream: S) -> Self
    where
        S: Stream<Item = Result<T, E>> + Send + 'static,
        T: Into<Bytes>,
        E: Into<BoxError>,
    {
        let (name, at) = (name.into(), Location::caller());
        self.starting(move |group, tx| {
            let scope = group.scope().clone();
            start(group, at, async move {
                let failure = match feed(stream, tx).await {
                    Ok(()) => return Ok(()),
                    Err(End::Failed(error)) => return Err(named(name, error)),
                    Err(End::Panicked(failure)) => failure,
                    Err(End::Burst(error, failure)) => {
                        scope.keep_error(named(name.clone(), error).into());
                        failure
                    }
                };
                // As a panic of its task, it makes the outcome what it is.
                Err(Panicked(named(name, failure.into())).into())
            });
        })
    }

    /// Adds a source whose failure, or panic, ends only itself: the others go on.
    ///
    /// The failure is kept as a [`SourceError`] in the end report, and does not change the outcome; nor does
    /// a panic, which is its [`Failure`] there, or the counts.
    #[track_caller]
    pub fn optional<S, T, E>(self, name: impl Into<Cow<'static, str>>, stream: S) -> Self
    where
        S: Stream<Item = Result<T, E>> + Send + 'static,
        T: Into<Bytes>,
        E: Into<BoxError>,
    {
        let (name, at) = (name.into(), Location::caller());
        self.starting(move |group, tx| {
            let scope = group.scope().clone();
            start(group, at, async move {
                let (error, burst): (BoxError, _) = match feed(stream, tx).await {
                    Ok(()) => return Ok(()),
                    Err(End::Failed(error)) => (error, None),
                    Err(End::Panicked(failure)) => (failure.into(), None),
                    Err(End::Burst(error, failure)) => (error, Some(failure.into())),
                };
                for error in [Some(error), burst].into_iter().flatten() {
                    scope.keep_error(named(name.clone(), error).into());
                }
                Ok(())
            });
        })
    }

    fn starting(mut self, start: impl FnOnce(&TaskGroup, FrameSender) + Send + 'static) -> Self {
        self.starts.push(Box::new(start));
        self
    }

    pub(super) fn start(self, group: &TaskGroup, tx: FrameSender) {
        for start in self.starts {
            start(group, tx.clone());
        }
    }
}

/// A source as a task of its group. Refused only if the end has started: nobody waits for it then.
fn start<F>(group: &TaskGroup, at: &'static Location<'static>, source: F)
where
    F: Future<Output = TaskResult> + Send + 'static,
{
    let scope = group.scope();
    let _ = scope.spawn(TaskKind::Plain, at, Forgiving::new(scope, source));
}

/// Why a source stopped before its stream was over.
enum End {
    Failed(BoxError),
    Panicked(Failure),
    /// It panicked as it went, behind the other.
    Burst(BoxError, Failure),
}

fn named(name: Cow<'static, str>, error: BoxError) -> BoxError {
    SourceError { name, error }.into()
}

fn panicked(payload: Payload) -> Failure {
    Failure::panicked("stream", &*payload)
}

/// Sends what the stream gives until it is over, or nobody wants it any more.
async fn feed<S, T, E>(stream: S, tx: FrameSender) -> Result<(), End>
where
    S: Stream<Item = Result<T, E>>,
    T: Into<Bytes>,
    E: Into<BoxError>,
{
    let mut stream = pin!(Some(stream));
    let fed = send_all(stream.as_mut(), &tx).await;
    // It is the application's, too, as it goes.
    let Err(payload) = contained(|| stream.set(None)) else {
        return fed;
    };
    let burst = panicked(payload);
    Err(match fed {
        Ok(()) => End::Panicked(burst),
        Err(End::Failed(error)) => End::Burst(error, burst),
        Err(End::Panicked(failure) | End::Burst(_, failure)) => End::Burst(failure.into(), burst),
    })
}

async fn send_all<S, T, E>(mut stream: Pin<&mut Option<S>>, tx: &FrameSender) -> Result<(), End>
where
    S: Stream<Item = Result<T, E>>,
    T: Into<Bytes>,
    E: Into<BoxError>,
{
    loop {
        // Converted in here, so that neither items nor errors need be `Send`.
        let next = poll_fn(|cx| {
            let polled = contained(|| {
                let Some(stream) = stream.as_mut().as_pin_mut() else {
                    return Poll::Ready(None);
                };
                let next = stream.poll_next(cx);
                next.map(|next| next.map(|item| item.map(T::into).map_err(E::into)))
            });
            match polled {
                Ok(next) => next.map(Ok),
                Err(payload) => Poll::Ready(Err(End::Panicked(panicked(payload)))),
            }
        });
        let item: Option<Result<Bytes, BoxError>> = next.await?;
        match item {
            None => return Ok(()),
            Some(Err(error)) => return Err(End::Failed(error)),
            Some(Ok(frame)) => {
                if tx.send(frame).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// A merged source failed, or panicked: which, and why.
#[derive(Debug)]
pub struct SourceError {
    name: Cow<'static, str>,
    error: BoxError,
}

impl SourceError {
    /// The name that the source was added with.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source {} failed", self.name)
    }
}

impl Error for SourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("len", &self.starts.len())
            .finish_non_exhaustive()
    }
}
