//! The handlers of a row, and what they tell of their ends.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::body::Body;
use bodyguard::{Disconnect, Outcome};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::Either, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::rows::{Does, Leaves, Row};

/// The response of a handler that goes on, and how it is cut into frames.
pub(crate) const WHOLE: usize = 1 << 20;
const FRAME: usize = 64 * 1024;

/// How an end was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// hyper dropped the handler or the body.
    Dropped,
    /// The handler's own read of the upload failed.
    ReadFailed,
    /// `Disconnect::gone` fired.
    Gone,
    /// `on_end` reported something else than a complete response.
    Ended(Outcome),
}

impl How {
    /// Whether it says that the client left, and not that something else went wrong.
    pub(crate) fn is_left(self) -> bool {
        match self {
            Self::Ended(outcome) => matches!(outcome, Outcome::Disconnected | Outcome::Dropped),
            Self::Dropped | Self::ReadFailed | Self::Gone => true,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Started,
    Seen(How, Instant),
}

/// What one row's handlers are to do, and whom they tell.
pub(crate) struct Stage {
    pub(crate) row: Row,
    pub(crate) layered: bool,
    events: mpsc::UnboundedSender<Event>,
    /// Set once handlers that answer later are to go on.
    go: watch::Sender<bool>,
    frames: AtomicU64,
    waiting: Mutex<JoinSet<()>>,
}

impl Stage {
    pub(crate) fn new(row: &Row, layered: bool, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            row: *row,
            layered,
            events,
            go: watch::Sender::new(false),
            frames: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// With bodyguard only what it tells counts, without it only what hyper does.
    pub(crate) fn seen(&self, how: How) {
        if self.layered == matches!(how, How::Gone | How::Ended(_)) {
            self.tell(Event::Seen(how, Instant::now()));
        }
    }

    pub(crate) fn go_on(&self) {
        self.go.send_replace(true);
    }

    /// Frames given so far by a body without end.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Tells when the view does, also once the handler has been dropped.
    fn wait_for(self: &Arc<Self>, disconnect: Disconnect) {
        let events = self.events.clone();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.spawn(async move {
            disconnect.gone().await;
            let _ = events.send(Event::Seen(How::Gone, Instant::now()));
        });
    }
}

/// Tells that hyper has dropped what holds it.
struct Guard(Option<Arc<Stage>>);

impl Guard {
    fn defuse(&mut self) {
        self.0 = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(stage) = &self.0 {
            stage.seen(How::Dropped);
        }
    }
}

pub(crate) async fn answer(stage: Arc<Stage>, request: Request<Body>) -> Response<Body> {
    if let Ok(disconnect) = Disconnect::of(&request) {
        stage.wait_for(disconnect);
    }
    let guard = Guard(Some(stage.clone()));
    let mut upload = Some(request.into_body());
    stage.tell(Event::Started);
    match stage.row.does {
        Does::DropsUpload => upload = None,
        Does::ReadsSomeUpload => {
            if let Some(upload) = &mut upload {
                let _ = upload.frame().await;
            }
        }
        Does::ReadsUpload => {
            if let Some(Err(_)) = read(&mut upload).await {
                stage.seen(How::ReadFailed);
            }
        }
        Does::Idles => {
            let frames = stream::iter([Bytes::from("first")]).chain(stream::pending());
            return streaming(frames, guard);
        }
        Does::Floods => {
            let frames = stream::repeat(Bytes::from(vec![b'x'; 16 * 1024]));
            let frames = frames.inspect(move |_| {
                stage.frames.fetch_add(1, Ordering::Relaxed);
            });
            return streaming(frames, guard);
        }
        Does::AnswersLater => {
            let _ = stage.go.subscribe().wait_for(|go| *go).await;
            return streaming(rest(&stage), guard);
        }
        Does::FlowsLater => {
            let go = stage.clone();
            let later = stream::once(async move {
                let _ = go.go.subscribe().wait_for(|go| *go).await;
                rest(&go)
            });
            let first = stream::iter([Bytes::from("first")]);
            return streaming(first.chain(later.flatten()), guard);
        }
        Does::Pends | Does::HoldsUpload => {}
    }
    pending::<()>().await;
    drop((upload, guard));
    Response::default()
}

async fn read(upload: &mut Option<Body>) -> Option<Result<(), axum::Error>> {
    let upload = upload.take()?;
    Some(upload.collect().await.map(drop))
}

/// All of it, or, for a client that is no longer there, one frame and then nothing.
fn rest(stage: &Stage) -> impl Stream<Item = Bytes> + Send + use<> {
    let frame = Bytes::from(vec![b'#'; FRAME]);
    if stage.row.leaves == Leaves::FinThenWrite {
        Either::Left(stream::iter([frame]).chain(stream::pending()))
    } else {
        Either::Right(stream::repeat(frame).take(WHOLE / FRAME))
    }
}

fn streaming(frames: impl Stream<Item = Bytes> + Send + 'static, guard: Guard) -> Response<Body> {
    let frames = Box::pin(frames);
    let frames = stream::unfold((frames, guard), |(mut frames, mut guard)| async move {
        let frame = frames.next().await;
        if frame.is_none() {
            guard.defuse();
        }
        frame.map(|frame| (Ok::<_, Infallible>(frame), (frames, guard)))
    });
    Response::new(Body::from_stream(frames))
}
