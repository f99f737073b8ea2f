//! What an idle compressed event stream costs: heap, wire, processor time, by history kept.
//!
//! The default history is chosen from the table that `--only idle_table` prints.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bodyguard::compression::CompressionLayer;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service};
use tower_http::compression::{CompressionLayer as TowerHttp, predicate::Predicate};

use crate::{
    live,
    support::{at_least, at_most, corpus::Words, cpu, figure, quick},
};

/// Enough for every history but the largest to be full.
const EVENTS_EACH: usize = 40;
/// The table's rows get along with fewer, and as many fewer compressors kept.
const ROW_STREAMS: usize = 1000;
/// tower-http's streams are too large for as many.
const THEIR_STREAMS: usize = 100;
const LONG_STREAMS: usize = 8;
const LONG_EVENTS: usize = 250;

/// The rows of the cost table.
pub(crate) fn run() {
    let default = CompressionLayer::new().random_padding(0);
    // Not fewer: the compressors that are kept are shared by all of them.
    let streams = 10_000;
    let corpora = corpora();
    let chosen = corpora
        .iter()
        .filter(|(name, _)| !quick() || *name == "newsroom");
    for (name, events) in chosen {
        let theirs = heap(&everything(), events, THEIR_STREAMS);
        let least = heap(&default.clone().history(1 << 10), events, streams);
        let mine = heap(&default, events, streams);
        let fewer = heap(&default, events, streams / 10);
        println!(
            "{name}: {:.2} KiB a stream at {streams}, {:.2} KiB at {}, with the compressors kept for all",
            mine / 1024.0,
            fewer / 1024.0,
            streams / 10
        );
        at_most(
            &format!("idle_{name}_heap_kib_at_1_kib"),
            vec![least / 1024.0],
            3.0,
        );
        at_most(&format!("idle_{name}_heap_kib"), vec![mine / 1024.0], 10.0);
        let ratio = theirs / mine;
        at_least(
            &format!("idle_{name}_heap_vs_tower_http"),
            vec![ratio],
            35.0,
        );
        let kept = wire(&default.clone().resident_limit(1 << 20), events);
        let ratio = wire_parked(&default, events) / kept;
        at_most(&format!("idle_{name}_wire"), vec![ratio], 1.25);
        if *name == "newsroom" {
            figure("heap_gzip_default", mine);
            figure("heap_gzip_1_kib", least);
            figure("heap_gzip_tower_http", theirs);
        }
    }
}

/// What each length of history costs and saves.
pub(crate) fn table() {
    let default = CompressionLayer::new().random_padding(0);
    for (name, events) in &corpora() {
        let size = events.iter().map(Bytes::len).sum::<usize>() / events.len();
        println!("{name}: events of {size} bytes");
        let theirs = everything();
        println!(
            "tower-http:        heap {:9.0}, {:6.1} bytes and {:5.1} µs an event",
            heap(&theirs, events, THEIR_STREAMS),
            wire(&theirs, events),
            cost(&theirs, events),
        );
        let kept = default.clone().resident_limit(1 << 20);
        let kept_wire = wire(&kept, events);
        println!(
            "never parked:                        {kept_wire:6.1} bytes and {:5.1} µs an event",
            cost(&kept, events),
        );
        for history in [0, 1, 2, 4, 6, 8, 16, 32] {
            let layer = default.clone().history(history << 10);
            let heap = heap(&layer.clone().resident_limit(3), events, ROW_STREAMS);
            let (wire, cost) = (wire_parked(&layer, events), cost_parked(&layer, events));
            println!(
                "history {history:2} KiB:    heap {heap:9.0}, {wire:6.1} bytes ({:.3}x) and {cost:5.1} µs an event",
                wire / kept_wire
            );
        }
    }
}

fn corpora() -> [(&'static str, Vec<Bytes>); 3] {
    [
        ("json", json()),
        ("newsroom", newsroom()),
        ("tokens", tokens()),
    ]
}

/// An event stream that has given `told` events and waits for the next.
struct Feed {
    events: Arc<[Bytes]>,
    next: usize,
    told: usize,
    due: Arc<AtomicUsize>,
}

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.told == self.due.load(Relaxed) {
            return Poll::Pending;
        }
        self.told += 1;
        self.next = (self.next + 1) % self.events.len();
        Poll::Ready(Some(Ok(Frame::data(self.events[self.next].clone()))))
    }
}

/// tower-http's layer, made to compress event streams too.
fn everything() -> TowerHttp<impl Predicate> {
    TowerHttp::new().compress_when(
        |_: http::StatusCode, _: http::Version, _: &http::HeaderMap, _: &http::Extensions| true,
    )
}

struct Handler(Option<Feed>);

impl Service<Request<()>> for Handler {
    type Response = Response<Feed>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Feed>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.take().expect("called once"))))
    }
}

type Boxed<B> = Pin<Box<B>>;

fn open<L, S, B>(
    layer: &L,
    events: &[Bytes],
    streams: usize,
    due: &Arc<AtomicUsize>,
) -> Vec<Boxed<B>>
where
    L: Layer<Handler, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    let events: Arc<[Bytes]> = events.into();
    (0..streams)
        .map(|n| {
            let feed = Feed {
                events: Arc::clone(&events),
                next: n * 37 % events.len(),
                told: 0,
                due: Arc::clone(due),
            };
            let request = Request::builder()
                .header("accept-encoding", "gzip")
                .body(())
                .unwrap();
            let mut future = Box::pin(layer.layer(Handler(Some(feed))).call(request));
            match future
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Ready(Ok(response)) => Box::pin(response.into_body()),
                _ => panic!("no head"),
            }
        })
        .collect()
}

/// One event for every stream; the bytes it made.
fn round<B: Body<Data = Bytes>>(bodies: &mut [Boxed<B>], due: &AtomicUsize) -> usize {
    due.fetch_add(1, Relaxed);
    let mut wire = 0;
    for body in bodies {
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) {
            wire += frame.into_data().map_or(0, |data| data.len());
        }
    }
    wire
}

/// Mean live heap of a stream that waits.
fn heap<L, S, B>(layer: &L, events: &[Bytes], streams: usize) -> f64
where
    L: Layer<Handler, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    let due = Arc::default();
    let before = live();
    let mut bodies = open(layer, events, streams, &due);
    for _ in 0..EVENTS_EACH {
        round(&mut bodies, &due);
    }
    (live() - before) as f64 / streams as f64
}

/// Bytes and microseconds of processor time an event, over long streams; `held` more streams keep
/// the compressors that may be kept.
fn long<L, S, B>(layer: &L, events: &[Bytes], held: usize) -> (f64, f64)
where
    L: Layer<Handler, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    let due = Arc::default();
    let mut holders = open(layer, events, held, &due);
    round(&mut holders, &due);
    let due = Arc::default();
    let mut bodies = open(layer, events, LONG_STREAMS, &due);
    let begin = cpu();
    let wire: usize = (0..LONG_EVENTS).map(|_| round(&mut bodies, &due)).sum();
    let spent = cpu().saturating_sub(begin);
    let count = (LONG_STREAMS * LONG_EVENTS) as f64;
    (wire as f64 / count, spent.as_secs_f64() * 1e6 / count)
}

fn wire<L, S, B>(layer: &L, events: &[Bytes]) -> f64
where
    L: Layer<Handler, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    long(layer, events, 0).0
}

fn cost<L, S, B>(layer: &L, events: &[Bytes]) -> f64
where
    L: Layer<Handler, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    long(layer, events, 0).1
}

fn wire_parked(layer: &CompressionLayer, events: &[Bytes]) -> f64 {
    long(layer, events, 64).0
}

fn cost_parked(layer: &CompressionLayer, events: &[Bytes]) -> f64 {
    long(layer, events, 64).1
}

fn json() -> Vec<Bytes> {
    let mut words = Words::new(3, 3000);
    (0..2000)
        .map(|n| {
            let (user, cents) = (words.below(5000), words.below(1_000_000));
            let (title, text) = (words.sentence(4), words.sentence(12));
            Bytes::from(format!(
                "data: {{\"id\":{},\"type\":\"trade\",\"user\":\"u{user}\",\"amount\":{}.{:02},\
                 \"currency\":\"EUR\",\"title\":\"{title}\",\"text\":\"{text}\",\"at\":\"2024-05-{:02}T{:02}:{:02}:{:02}Z\"}}\n\n",
                1_000_000 + n,
                cents / 100,
                cents % 100,
                1 + n / 100,
                n % 24,
                words.below(60),
                words.below(60),
            ))
        })
        .collect()
}

/// News and weather, merged: two kinds of events of different length.
fn newsroom() -> Vec<Bytes> {
    let mut words = Words::new(4, 6000);
    (0..2000)
        .map(|n| {
            if words.below(2) == 0 {
                let (city, sky) = (words.below(60), words.below(8));
                let (degrees, wind) = (words.below(400) as i32 - 100, words.below(300));
                Bytes::from(format!(
                    "event: weather\ndata: {{\"seq\":{n},\"city\":\"{}\",\"temperature\":{}.{},\"wind\":{}.{},\"sky\":\"{}\"}}\n\n",
                    ["berlin", "lagos", "lima", "oslo", "kyoto", "perth"][city % 6],
                    degrees / 10,
                    degrees.unsigned_abs() % 10,
                    wind / 10,
                    wind % 10,
                    ["clear", "cloudy", "rain", "snow"][sky % 4],
                ))
            } else {
                let (length, source) = (6 + words.below(8), words.below(12));
                let (headline, lead) = (words.sentence(length), words.sentence(25));
                Bytes::from(format!(
                    "event: news\ndata: {{\"seq\":{n},\"source\":\"agency-{source}\",\"headline\":\"{headline}\",\"lead\":\"{lead}\"}}\n\n"
                ))
            }
        })
        .collect()
}

/// Completions as model servers stream them: a long frame around a short word.
fn tokens() -> Vec<Bytes> {
    let mut words = Words::new(5, 4000);
    (0..2000)
        .map(|n| {
            let id = 0x9f3a_6c21_u64.wrapping_mul(1 + (n / 400) as u64);
            let word = words.word().to_owned();
            Bytes::from(format!(
                "data: {{\"id\":\"chatcmpl-{id:016x}\",\"object\":\"chat.completion.chunk\",\"created\":1716210000,\
                 \"model\":\"local-7b-instruct\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" {word}\"}},\
                 \"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
            ))
        })
        .collect()
}
