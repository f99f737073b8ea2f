//! A recorder of `metrics` that panics, on all threads, and a subscriber of `tracing`: nobody but itself loses
//! anything by it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Read as _,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bodyguard::{
    Cleanup, Stack,
    bridge::{Cx, sync_handler},
    compression::{CompressionLayer, CompressionStats},
    testing::Script,
};
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tower::{Layer, ServiceExt, service_fn};
use tracing::{Event, Subscriber};
use tracing_subscriber::{Registry, layer::Context, prelude::*};

/// Where the recorder panics, if anywhere.
#[derive(Clone, Copy, Default)]
enum Faulty {
    #[default]
    Nowhere,
    /// As it writes down metrics whose names begin so.
    Values(&'static str),
    /// As it is asked for such.
    Handles(&'static str),
}

/// What the recorder does, and what it was told: sums, of histograms how many.
#[derive(Default)]
struct Recorded {
    faulty: Faulty,
    sums: BTreeMap<String, f64>,
}

static RECORDED: Mutex<Recorded> = Mutex::new(Recorded {
    faulty: Faulty::Nowhere,
    sums: BTreeMap::new(),
});

fn recorded() -> MutexGuard<'static, Recorded> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn be(faulty: Faulty) {
    recorded().faulty = faulty;
}

fn sum(name: &str) -> f64 {
    recorded().sums.get(name).copied().unwrap_or(0.0)
}

/// One metric; it is told also where it panics then.
struct Told(String);

impl Told {
    fn add(&self, change: f64) {
        let mut recorded = recorded();
        *recorded.sums.entry(self.0.clone()).or_default() += change;
        if let Faulty::Values(names) = recorded.faulty {
            assert!(!self.0.starts_with(names), "scripted");
        }
    }
}

impl CounterFn for Told {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Told {
    fn increment(&self, value: f64) {
        self.add(value);
    }

    fn decrement(&self, value: f64) {
        self.add(-value);
    }

    fn set(&self, _: f64) {}
}

impl HistogramFn for Told {
    fn record(&self, _: f64) {
        self.add(1.0);
    }
}

/// The one recorder of this program.
struct Faults;

impl Faults {
    fn told(key: &Key) -> Arc<Told> {
        if let Faulty::Handles(names) = recorded().faulty {
            assert!(!key.name().starts_with(names), "scripted");
        }
        Arc::new(Told(key.name().to_owned()))
    }
}

impl Recorder for Faults {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Self::told(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Self::told(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Self::told(key))
    }
}

/// One test at a time, with a recorder that has been told nothing and does not panic yet.
fn recording<F: Future>(test: F) -> F::Output {
    static ALONE: Mutex<()> = Mutex::new(());
    static RECORDER: Once = Once::new();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    RECORDER.call_once(|| assert!(metrics::set_global_recorder(Faults).is_ok()));
    *recorded() = Recorded::default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

const FRAMES: usize = 3;

/// Frames that come one by one, so that each leaves on its own, and the stream parks if it has to.
fn body() -> Script {
    (0..FRAMES).fold(Script::new(), |script, _| {
        script.data("data: news\n\n").pending()
    })
}

type Compressed = UnsyncBoxBody<Bytes, bodyguard::BodyError>;

async fn call(layer: &CompressionLayer) -> Compressed {
    let handler = service_fn(|_: Request<()>| async {
        let head = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
        Ok::<_, Infallible>(head.body(body()).unwrap())
    });
    let request = Request::builder().header(header::ACCEPT_ENCODING, "gzip");
    let call = layer.layer(handler).oneshot(request.body(()).unwrap());
    call.await.unwrap().into_body().boxed_unsync()
}

async fn rest(body: Compressed) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

#[track_caller]
fn assert_whole(content: &[u8]) {
    let mut text = String::new();
    GzDecoder::new(content).read_to_string(&mut text).unwrap();
    assert_eq!(text, "data: news\n\n".repeat(FRAMES));
}

/// A stream is under way and a compressor is free, both from before.
#[test]
fn streams_and_compressors_outlive_a_recorder_that_begins_to_panic() {
    for limit in [8, 0] {
        recording(async {
            let layer = CompressionLayer::new().resident_limit(limit);
            let (mut one, two) = (call(&layer).await, call(&layer).await);
            let mut content = one
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .to_vec();
            assert_whole(&rest(two).await);
            be(Faulty::Values("bodyguard_compression_"));
            content.extend_from_slice(&rest(one).await);
            assert_whole(&content);
            let stats = layer.stats();
            assert_eq!((stats.open, stats.parked), (0, 0));
            assert_eq!(stats.resident, limit.min(2));
            assert_eq!(stats.bytes_in, 2 * 36);
            assert_eq!(
                stats.bytes_out,
                sum("bodyguard_compression_bytes_out_total") as u64
            );
            drop(layer);
            assert_eq!(sum("bodyguard_compression_resident"), 0.0);
        });
    }
}

/// The other metrics are told as ever.
#[test]
fn every_metric_of_compression_may_panic() {
    let names = [
        "bodyguard_compression_streams",
        "bodyguard_compression_parked",
        "bodyguard_compression_resident",
        "bodyguard_compression_bytes_in_total",
        "bodyguard_compression_bytes_out_total",
    ];
    for name in names {
        for faulty in [Faulty::Values(name), Faulty::Handles(name)] {
            recording(async {
                let layer = CompressionLayer::new().resident_limit(0);
                be(faulty);
                for _ in 0..3 {
                    assert_whole(&rest(call(&layer).await).await);
                }
                let stats = layer.stats();
                let CompressionStats {
                    bytes_in,
                    bytes_out,
                    ..
                } = stats;
                assert_eq!(
                    (stats.open, stats.parked, stats.resident),
                    (0, 0, 0),
                    "{name}"
                );
                assert_eq!(bytes_in, 3 * 36);
                let told = names.map(sum);
                let expected = [0.0, 0.0, 0.0, bytes_in as f64, bytes_out as f64];
                for ((of, told), expected) in names.into_iter().zip(told).zip(expected) {
                    let refused = of == name && matches!(faulty, Faulty::Handles(_));
                    assert_eq!(told, if refused { 0.0 } else { expected }, "{of}");
                }
                assert!(recorded().sums.len() >= names.len() - 1);
            });
        }
    }
}

/// One that is counted twice would keep others from holding theirs.
#[test]
fn compressors_are_counted_once_while_streams_hold_them() {
    recording(async {
        let layer = CompressionLayer::new().resident_limit(4);
        be(Faulty::Values("bodyguard_compression_resident"));
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut body = call(&layer).await;
            assert!(body.frame().await.unwrap().is_ok());
            open.push(body);
        }
        let stats = layer.stats();
        assert_eq!((stats.open, stats.parked, stats.resident), (3, 0, 3));
        drop(open);
        let stats = layer.stats();
        assert_eq!((stats.open, stats.parked, stats.resident), (0, 0, 3));
    });
}

/// Its wait still tells what it came to.
#[test]
fn a_closer_that_fails_late() {
    recording(async {
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let (mut key, mut finished) = (None, Some(finished));
        let stack = Stack::new().closer_limit(Duration::from_millis(1));
        let service = stack.layer(service_fn(|request: Request<()>| {
            let finished = finished.take().unwrap();
            key = Some(Cleanup::of(&request).unwrap().defer(|_| async {
                finished.await?;
                Err("disk".into())
            }));
            std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let mut early = Box::pin(key.unwrap().close_now());
        assert!(futures_util::poll!(&mut early).is_pending());
        response.into_body().collect().await.unwrap_err();
        be(Faulty::Values("bodyguard_closers_failed_total"));
        finish.send(()).unwrap();
        assert_eq!(early.await.unwrap_err().to_string(), "disk");
    });
}

/// A subscriber that panics at every event, and counts them.
#[derive(Clone, Default)]
struct Mute(Arc<AtomicUsize>);

impl Mute {
    fn told(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Mute {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        self.0.fetch_add(1, Relaxed);
        panic!("scripted");
    }
}

#[test]
fn a_subscriber_that_panics_takes_no_metrics_along() {
    recording(async {
        let mute = Mute::default();
        let _here = tracing::subscriber::set_default(Registry::default().with(mute.clone()));
        let service = Stack::new().layer(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Script::new().data("abc")))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        response.into_body().collect().await.unwrap();
        assert_eq!(mute.told(), 1);
        assert_eq!(sum("bodyguard_responses_total"), 1.0);
        assert_eq!(sum("bodyguard_response_bytes_total"), 3.0);
    });
}

/// The client gets it all the same.
#[test]
fn a_bridge_error_that_is_answered_to_a_subscriber_that_panics() {
    recording(async {
        let mute = Mute::default();
        let _here = tracing::subscriber::set_default(Registry::default().with(mute.clone()));
        let handler = sync_handler(|_: &Cx, ()| "never");
        let app = axum::Router::new().route("/", axum::routing::get(handler));
        let request = Request::new(axum::body::Body::empty());
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(mute.told(), 1);
    });
}
