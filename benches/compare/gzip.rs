//! gzip throughput and size, against tower-http and a raw flate2 loop, in one run.
//!
//! `GZIP_FILE=path` takes a corpus of your own instead.

use std::{
    convert::Infallible,
    env, fs,
    io::Write,
    path::PathBuf,
    pin::pin,
    process::Command,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bodyguard::compression::CompressionLayer;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{runtime::Runtime, task::JoinSet};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http::{CompressionLevel, compression::CompressionLayer as TowerHttp};

use crate::support::{
    at_least, at_most, build,
    corpus::{self, chunks},
    cpu, median, quick, stated,
};

const ROUNDS: usize = 5;
/// Of what two threads or short answers make uneven.
const MANY_ROUNDS: usize = 21;
/// Where both sides are expected to be alike: so many processes of so many short rounds, since where in memory the
/// tables stand makes several per cent, and much of that is drawn once for each process.
const CLOSE_PROCESSES: usize = 8;
const CLOSE_ROUNDS: usize = 11;
/// The part of the text that a short round takes.
const CLOSE_PART: usize = 4;
const BYTES: usize = 4 << 20;
const CHUNKS: [usize; 4] = [256, 4 << 10, 64 << 10, 1 << 20];

/// One run: wall clock, processor time, bytes out.
type Run<'a> = Box<dyn FnMut() -> Cost + 'a>;

#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
    bytes: usize,
}

impl Cost {
    /// Since `begin`, which is a clock reading and the processor time then.
    fn since(begin: (Instant, Duration), bytes: usize) -> Self {
        Self {
            wall: begin.0.elapsed(),
            cpu: cpu().saturating_sub(begin.1),
            bytes,
        }
    }
}

fn begin() -> (Instant, Duration) {
    let cpu = cpu();
    (Instant::now(), cpu)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn corpora() -> Vec<(&'static str, Bytes)> {
    let size = if quick() { BYTES / 2 } else { BYTES };
    match env::var("GZIP_FILE") {
        Ok(path) => vec![("file", fs::read(path).expect("GZIP_FILE").into())],
        Err(_) => vec![
            ("prose", corpus::prose(size).into()),
            ("json", corpus::json(size).into()),
        ],
    }
}

/// One process of [`Rounds::of_processes`]: its rounds, each in a line.
pub(crate) fn close(row: &str) {
    let mut row = row.split('/');
    let mut next = || row.next().expect("corpus/chunk/peer");
    let (name, chunk, peer) = (next(), next().parse().expect("a number"), next());
    let mut corpora = corpora().into_iter();
    let (_, text) = corpora.find(|corpus| corpus.0 == name).expect("a corpus");
    let chunks = chunks(&text.slice(..text.len() / CLOSE_PART), chunk);
    let runtime = runtime();
    let layer = || CompressionLayer::new().level(6);
    let ours = || runtime.block_on(through(&layer(), &chunks));
    let theirs = TowerHttp::new().quality(CompressionLevel::Precise(6));
    let theirs = || match peer {
        "loop" => raw(&chunks, 6),
        _ => runtime.block_on(through(&theirs, &chunks)),
    };
    let rounds = CLOSE_ROUNDS / if quick() { 2 } else { 1 };
    let pair = compare(Box::new(ours), Box::new(theirs), rounds);
    for (faster, cheaper) in pair.faster.iter().zip(&pair.cheaper) {
        println!("{faster} {cheaper}");
    }
}

pub(crate) fn run(levels: bool) {
    let runtime = runtime();
    let peer = Peer::new();
    let mut close = Close::default();
    for (name, text) in corpora() {
        let part = text.slice(..text.len() / CLOSE_PART);
        let file = peer.store(name, &text);
        let raw = |chunk: usize, level: u32| -> Run<'_> {
            let chunks = chunks(&part, chunk);
            Box::new(move || raw(&chunks, level))
        };
        // A layer a run, and so a compressor a run, as on the other side: where in memory it stands
        // makes several per cent.
        let ours = |text: &Bytes, chunk: usize, layer: fn() -> CompressionLayer| -> Run<'_> {
            let chunks = chunks(text, chunk);
            let runtime = &runtime;
            Box::new(move || runtime.block_on(through(&layer(), &chunks)))
        };
        // No runtime, no workers: what the layer itself costs.
        let inline = |chunk: usize, layer: fn() -> CompressionLayer| -> Run<'_> {
            let chunks = chunks(&part, chunk);
            Box::new(move || {
                // Pending only to let others have their turn, of whom there are none.
                let layer = layer();
                let mut run = pin!(through(&layer, &chunks));
                let mut cx = Context::from_waker(Waker::noop());
                loop {
                    if let Poll::Ready(done) = run.as_mut().poll(&mut cx) {
                        break done;
                    }
                }
            })
        };
        let default = |chunk: usize| -> Run<'_> {
            let (peer, file) = (&peer, file.clone());
            Box::new(move || peer.run(&file, chunk))
        };

        if levels {
            println!("{name}: levels against tower-http with default features, 64 KiB chunks");
            for level in 1..=9 {
                let layer = CompressionLayer::new().level(level).random_padding(0);
                let chunks = chunks(&text, 64 << 10);
                let run: Run<'_> = Box::new(|| runtime.block_on(through(&layer, &chunks)));
                let pair = compare(run, default(64 << 10), 3);
                println!(
                    "level {level}: {:6.1} MB/s, {:.2}x theirs ({:.2}x by processor time), size {:.4} ({:.3}x theirs)",
                    text.len() as f64 / pair.ours / 1e6,
                    median(pair.faster),
                    median(pair.cheaper),
                    pair.bytes as f64 / text.len() as f64,
                    median(pair.size),
                );
            }
            continue;
        }
        let sizes: &[usize] = if quick() { &[64 << 10] } else { &CHUNKS };
        let parallel_rounds = MANY_ROUNDS / if quick() { 2 } else { 1 };
        for &chunk in sizes {
            let layer = CompressionLayer::new;
            let level_6 = || CompressionLayer::new().level(6);
            let parallel = || CompressionLayer::new().parallel(true);
            let about = |what: &str| format!("gzip_{name}_{chunk}_{what}");
            let pair = compare(ours(&text, chunk, layer), default(chunk), ROUNDS);
            at_least(&about("vs_tower_http_default"), pair.faster, 2.4);
            at_most(&about("size_vs_tower_http_default"), pair.size, 1.02);
            let rounds = Rounds::of_processes(name, chunk, "tower_http");
            close
                .tower_http
                .row(&about("vs_tower_http_zlib_rs"), rounds, 1.0);
            let rounds = Rounds::of_processes(name, chunk, "loop");
            close.loops.row(&about("vs_flate2_loop"), rounds, 0.97);
            let pair = compare(inline(chunk, level_6), raw(chunk, 6), MANY_ROUNDS);
            println!(
                "{}: {:.3} by the clock, {:.3} by processor time",
                about("vs_flate2_loop_without_workers"),
                median(pair.faster),
                median(pair.cheaper)
            );
            let runs = (ours(&text, chunk, parallel), ours(&text, chunk, layer));
            let pair = compare(runs.0, runs.1, parallel_rounds);
            at_least(&about("parallel"), pair.faster, 1.7);
            at_most(&about("parallel_size"), pair.size, 1.01);
        }
    }
    if !levels {
        close.tower_http.all("gzip_all_vs_tower_http_zlib_rs", 1.0);
        close.loops.all("gzip_all_vs_flate2_loop", 0.97);
    }
    runtime.block_on(small());
    for (len, at_once) in [
        (16 << 10, 1),
        (16 << 10, 500),
        (64 << 10, 1),
        (64 << 10, 16),
        (512 << 10, 1),
        (512 << 10, 16),
    ] {
        loaded(len, at_once);
    }
}

/// The rounds of all rows whose sides are expected to be alike.
#[derive(Default)]
struct Close {
    tower_http: Rounds,
    loops: Rounds,
}

#[derive(Default)]
struct Rounds {
    faster: Vec<f64>,
    cheaper: Vec<f64>,
}

impl Rounds {
    /// Our layer against a peer at the same level, in several processes.
    fn of_processes(name: &str, chunk: usize, peer: &str) -> Self {
        let mut rounds = Self::default();
        for _ in 0..CLOSE_PROCESSES {
            let mut command = Command::new(env::current_exe().expect("this program"));
            command.args(["--gzip-close", &format!("{name}/{chunk}/{peer}")]);
            if quick() {
                command.arg("--quick");
            }
            let output = command.output().expect("a process");
            for line in String::from_utf8(output.stdout).expect("numbers").lines() {
                let mut ratios = line.split(' ').map(|n| n.parse::<f64>().expect("a number"));
                rounds.faster.extend(ratios.next());
                rounds.cheaper.extend(ratios.next());
            }
        }
        rounds
    }

    /// One row, whose rounds count for [`all`](Self::all) too.
    fn row(&mut self, name: &str, rounds: Self, goal: f64) {
        self.faster.extend(&rounds.faster);
        self.cheaper.extend(&rounds.cheaper);
        at_least(name, rounds.faster, goal);
        at_least(&format!("{name}_cpu"), rounds.cheaper, goal);
    }

    /// What the rows' own scatter hides.
    fn all(self, name: &str, goal: f64) {
        at_least(name, self.faster, goal);
        at_least(&format!("{name}_cpu"), self.cheaper, goal);
    }
}

/// Seconds and bytes on our side, and what each pair of runs says.
struct Pair {
    ours: f64,
    bytes: usize,
    /// Ratios of wall clocks; of processor times.
    faster: Vec<f64>,
    cheaper: Vec<f64>,
    size: Vec<f64>,
}

/// A B B A, and the ratio of each pair.
///
/// Each run finds the heap at another place than the one before: else whoever was lucky with his
/// pages once would be so in every round.
fn compare(mut ours: Run<'_>, mut theirs: Run<'_>, rounds: usize) -> Pair {
    let mut kept = Vec::new();
    let mut moved = |run: &mut Run<'_>| {
        kept.push(vec![1_u8; (1 + kept.len() * 29 % 97) << 12]);
        run()
    };
    moved(&mut ours);
    moved(&mut theirs);
    let mut pair = |round: usize| {
        if round % 2 == 0 {
            let a = moved(&mut ours);
            (a, moved(&mut theirs))
        } else {
            let b = moved(&mut theirs);
            (moved(&mut ours), b)
        }
    };
    let pairs: Vec<_> = (0..rounds).map(&mut pair).collect();
    let of = |ratio: fn(&Cost, &Cost) -> f64| pairs.iter().map(|(a, b)| ratio(a, b)).collect();
    Pair {
        ours: median(of(|a, _| a.wall.as_secs_f64())),
        bytes: pairs[0].0.bytes,
        faster: of(|a, b| b.wall.as_secs_f64() / a.wall.as_secs_f64()),
        cheaper: of(|a, b| b.cpu.as_secs_f64() / a.cpu.as_secs_f64()),
        size: of(|a, b| a.bytes as f64 / b.bytes as f64),
    }
}

fn raw(chunks: &[Bytes], level: u32) -> Cost {
    let begin = begin();
    let mut encoder = GzEncoder::new(Vec::with_capacity(BYTES), Compression::new(level));
    for chunk in chunks {
        encoder.write_all(chunk).unwrap();
    }
    let bytes = encoder.finish().unwrap().len();
    Cost::since(begin, bytes)
}

type Chunked =
    StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn through<L, S, B>(layer: &L, chunks: &[Bytes]) -> Cost
where
    L: Layer<HandlerService, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let service = layer.layer(handler(chunks));
    let begin = begin();
    let bytes = drain(service).await;
    Cost::since(begin, bytes)
}

struct HandlerService(Option<Chunked>);

fn handler(chunks: &[Bytes]) -> HandlerService {
    let frames: Vec<_> = chunks
        .iter()
        .map(|chunk| Ok(Frame::data(chunk.clone())))
        .collect();
    HandlerService(Some(StreamBody::new(futures_util::stream::iter(frames))))
}

impl Service<Request<()>> for HandlerService {
    type Response = Response<Chunked>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Chunked>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.take().expect("called once"))))
    }
}

async fn drain<S, B>(service: S) -> usize
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let request = Request::builder()
        .header("accept-encoding", "gzip")
        .body(())
        .unwrap();
    let response = service.oneshot(request).await.unwrap();
    let mut body = std::pin::pin!(response.into_body());
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    bytes
}

/// Small answers: how many a second.
async fn small() {
    let text = Bytes::from(corpus::json(1024));
    let requests = if quick() { 1_000 } else { 5_000 };
    let handler = {
        let text = text.clone();
        service_fn(move |_: Request<()>| {
            let response = Response::new(Full::new(text.clone()));
            async { Ok::<_, Infallible>(response) }
        })
    };
    let ours = CompressionLayer::new().layer(handler.clone());
    let theirs = TowerHttp::new().layer(handler);
    let mut ratios = Vec::new();
    for round in 0..MANY_ROUNDS {
        let mut times = [Duration::ZERO; 2];
        for side in [round % 2, 1 - round % 2] {
            let begin = Instant::now();
            for _ in 0..requests {
                match side {
                    0 => drain(ours.clone()).await,
                    _ => drain(theirs.clone()).await,
                };
            }
            times[side] = begin.elapsed();
        }
        ratios.push(times[1].as_secs_f64() / times[0].as_secs_f64());
    }
    at_least("gzip_small_requests", ratios, 1.2);
}

/// Streams of `len` bytes each, so many at once on two threads, at the same level: how many a second.
fn loaded(len: usize, at_once: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let chunks = chunks(&Bytes::from(corpus::json(len)), 4 << 10);
    let each = (BYTES / if quick() { 2 } else { 1 } / len / at_once).max(1);
    let ours = CompressionLayer::new().level(6);
    let theirs = TowerHttp::new().quality(CompressionLevel::Precise(6));
    let ours = || runtime.block_on(all(&ours, &chunks, at_once, each));
    let theirs = || runtime.block_on(all(&theirs, &chunks, at_once, each));
    let pair = compare(Box::new(ours), Box::new(theirs), MANY_ROUNDS);
    let name = format!("gzip_{len}_{at_once}_at_once_vs_tower_http_zlib_rs");
    stated(&name, median(pair.faster));
    stated(&format!("{name}_cpu"), median(pair.cheaper));
}

/// `each` responses behind each other in each of so many tasks.
async fn all<L, S, B>(layer: &L, chunks: &[Bytes], at_once: usize, each: usize) -> Cost
where
    L: Layer<HandlerService, Service = S> + Clone + Send + 'static,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Send,
    S::Future: Send,
    B: Body<Data = Bytes> + Send,
    B::Error: std::fmt::Debug,
{
    let begin = begin();
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (layer, chunks) = (layer.clone(), chunks.to_vec());
        tasks.spawn(async move {
            let mut bytes = 0;
            for _ in 0..each {
                bytes += drain(layer.layer(handler(&chunks))).await;
            }
            bytes
        });
    }
    let bytes = tasks.join_all().await.into_iter().sum();
    Cost::since(begin, bytes)
}

/// tower-http with its own features, in its own process.
struct Peer {
    binary: PathBuf,
    folder: PathBuf,
}

impl Peer {
    fn new() -> Self {
        let binary = build("peer-default");
        let folder = binary.parent().expect("a folder").to_owned();
        Self { binary, folder }
    }

    fn store(&self, name: &str, text: &[u8]) -> PathBuf {
        let file = self.folder.join(name);
        fs::write(&file, text).expect("corpus");
        file
    }

    fn run(&self, file: &PathBuf, chunk: usize) -> Cost {
        let output = Command::new(&self.binary)
            .arg(file)
            .arg(chunk.to_string())
            .output()
            .expect("peer");
        let line = String::from_utf8(output.stdout).expect("numbers");
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|n| n.parse().expect("a number"))
            .collect();
        Cost {
            wall: Duration::from_nanos(numbers[0]),
            cpu: Duration::from_nanos(numbers[1]),
            bytes: numbers[2] as usize,
        }
    }
}
