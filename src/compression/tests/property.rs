//! Random bodies, chunkings, pendings and options, with and without a runtime.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;

use super::{
    super::{CompressionBody, CompressionLayer, Flush},
    Taken, answer, drain, events, foreign, get, gunzip, poll,
    script::{Script, Step, data},
};

/// A small generator (SplitMix64), so that a failing case is named by its seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

struct Case {
    layer: CompressionLayer,
    /// Another response through the same layer, left after this many frames.
    left: Option<(Script, usize)>,
    text: Vec<u8>,
    script: Script,
    about: String,
}

fn case(seed: u64, largest: usize) -> Case {
    let mut random = Random(seed);
    let flush = random.pick(&[Flush::WhenIdle, Flush::EveryFrame, Flush::Never]);
    let history = random.pick(&[0, 1, 100, 1 << 10, 4 << 10, 8 << 10, 32 << 10]);
    // The fastest often: its state is another than that of the others.
    let level = 1 + random.below(18).saturating_sub(9) as u32;
    let limit = random.pick(&[0, 0, 1, 32]);
    let parallel = random.below(2) == 0;
    let padding = random.pick(&[0, 100]);
    let bound = random.pick(&[2, 300, 70_000, largest]);
    let length = random.below(bound);
    let mut text = match random.below(3) {
        0 => (0..length).map(|_| random.next() as u8).collect(),
        1 => events(length / 60 + 1).concat(),
        _ => (0..length).map(|n| b"ab"[(n / 1000) % 2]).collect(),
    };
    text.truncate(length);
    let (chunk, pendings) = (
        random.pick(&[1, 100, 5_000, 200_000]),
        random.pick(&[0, 1, 5]),
    );
    let mut steps = Vec::new();
    let mut rest = Bytes::from(text.clone());
    while !rest.is_empty() {
        // At most a few thousand steps.
        let piece = 1 + rest.len() / 2000 + random.below(chunk);
        steps.push(data(rest.split_to(piece.min(rest.len()))));
        if random.below(10) < pendings {
            steps.push(Step::Pending);
        }
        if random.below(20) == 0 {
            steps.push(data(""));
        }
    }
    let mut script = Script::new(steps);
    if random.below(2) == 0 {
        script = script.hinting_end();
    }
    if random.below(3) == 0 {
        script = script.promising(length as u64);
    }
    let left = (random.below(2) == 0).then(|| {
        let length = random.below(200_000);
        let noise: Vec<_> = (0..length).map(|_| random.next() as u8).collect();
        let chunk = 1 + random.below(40_000);
        let steps = noise.chunks(chunk).map(|chunk| data(chunk.to_vec()));
        let steps = steps.flat_map(|step| [step, Step::Pending]);
        (Script::new(steps), random.below(6))
    });
    Case {
        left,
        layer: CompressionLayer::new()
            .flush(flush)
            .history(history)
            .level(level)
            .resident_limit(limit)
            .parallel(parallel)
            .random_padding(padding)
            .min_size(0),
        text,
        script,
        about: format!(
            "seed {seed}: {flush:?}, history {history}, level {level}, limit {limit}, \
             parallel {parallel}, {length} bytes"
        ),
    }
}

fn check(case: &Case, encoded: bool, taken: &Taken) {
    assert!(taken.error.is_none(), "{}: {:?}", case.about, taken.error);
    let text = if encoded {
        gunzip(&taken.wire)
    } else {
        taken.wire.clone()
    };
    assert!(text == case.text, "{}: text differs", case.about);
    assert_eq!(case.layer.core_lent(), 0, "{}", case.about);
    assert_eq!(case.layer.stats().open, 0, "{}", case.about);
    assert_eq!(case.layer.stats().parked, 0, "{}", case.about);
}

#[test]
fn whatever_goes_in_comes_out_without_a_runtime() {
    for seed in 0..150 {
        let mut case = case(seed, 150_000);
        if let Some((script, frames)) = case.left.take() {
            let left = answer(&case.layer, get("gzip"), Response::new(script));
            let mut left = Box::pin(left.into_body());
            for _ in 0..frames {
                drop(poll(left.as_mut()));
            }
        }
        let script = std::mem::replace(&mut case.script, Script::new([]));
        let response = answer(&case.layer, get("gzip"), Response::new(script));
        let encoded = response.headers().contains_key("content-encoding");
        check(&case, encoded, &drain(response.into_body()));
    }
}

/// How many cases were parked, had a thread, and were blocks in parallel.
#[derive(Debug, Default)]
struct Reached {
    parked: usize,
    threads: usize,
    parallel: usize,
}

impl Reached {
    fn count(&mut self, case: &Case) {
        let (parked, stints, blocks) = case.layer.core_tally();
        self.parked += usize::from(parked > 0);
        self.threads += usize::from(stints > 0);
        self.parallel += usize::from(blocks > 1);
    }

    fn assert(&self, parked: usize, threads: usize, parallel: usize) {
        println!("{self:?}");
        assert!(self.parked >= parked, "{self:?}");
        assert!(self.threads >= threads, "{self:?}");
        assert!(self.parallel >= parallel, "{self:?}");
    }
}

async fn respond(layer: &CompressionLayer, script: Script) -> Response<CompressionBody<Script>> {
    use tower::ServiceExt;
    use tower_layer::Layer;
    let mut response = Some(Response::new(script));
    let service = layer.layer(super::Fixed(|| response.take().unwrap()));
    service.oneshot(get("gzip")).await.unwrap()
}

/// Takes some frames of a response and leaves.
async fn leave(layer: &CompressionLayer, script: Script, frames: usize) {
    let mut body = Box::pin(respond(layer, script).await.into_body());
    for _ in 0..frames {
        if body.frame().await.is_none() {
            break;
        }
    }
}

/// A worker may be in the middle of a block.
async fn all_back(case: &Case) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while case.layer.core_lent() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{}: a compressor is lost", case.about));
}

/// All of the case's response, while there may be `others` whose worker is not done yet.
async fn take(case: &mut Case, others: bool) {
    let script = std::mem::replace(&mut case.script, Script::new([]));
    let response = respond(&case.layer, script).await;
    let encoded = response.headers().contains_key("content-encoding");
    let mut body = pin!(response.into_body());
    let mut taken = Taken::default();
    while taken.take(body.frame().await) {}
    body.set(CompressionBody::default());
    if others {
        all_back(case).await;
    }
    check(case, encoded, &taken);
}

#[tokio::test]
async fn whatever_goes_in_comes_out_with_workers() {
    let mut reached = Reached::default();
    for seed in 1000..1080 {
        let mut case = case(seed, 1_500_000);
        let left = case.left.take();
        let others = left.is_some();
        if let Some((script, frames)) = left {
            leave(&case.layer, script, frames).await;
        }
        take(&mut case, others).await;
        reached.count(&case);
    }
    reached.assert(8, 15, 8);
}

/// Streams of every level and history, in parallel or not, from compressors that were another's
/// just before, to decoders that are not ours.
#[tokio::test]
async fn other_decoders_find_one_member_in_each() {
    let mut wires = Vec::new();
    let mut reached = Reached::default();
    for seed in 3000..3050 {
        let mut own = case(seed, 1_000_000);
        let mut guest = case(seed + 1_000, 300_000);
        // Two at a time, and then a third: all of one pool.
        let mut third = case(seed + 2_000, 300_000);
        guest.layer = own.layer.clone();
        third.layer = own.layer.clone();
        let (first, second) = tokio::join!(taken(&mut own), taken(&mut guest));
        wires.extend(first.into_iter().chain(second));
        wires.extend(taken(&mut third).await);
        reached.count(&own);
    }
    reached.assert(6, 15, 2);
    assert!(wires.len() > 100);
    foreign::decode(wires);
}

/// The wire and the text of a case; `None` if it was left as it is.
async fn taken(case: &mut Case) -> Option<(Vec<u8>, Vec<u8>)> {
    let script = std::mem::replace(&mut case.script, Script::new([]));
    let response = respond(&case.layer, script).await;
    let encoded = response.headers().contains_key("content-encoding");
    let mut body = pin!(response.into_body());
    let mut taken = Taken::default();
    while taken.take(body.frame().await) {}
    assert!(taken.error.is_none(), "{}: {:?}", case.about, taken.error);
    encoded.then(|| (taken.wire, std::mem::take(&mut case.text)))
}

#[tokio::test]
async fn dropped_at_any_frame_everything_comes_back() {
    for seed in 2000..2050 {
        let mut case = case(seed, 1_500_000);
        let frames = Random(seed).below(12);
        leave(&case.layer, case.script.clone(), frames).await;
        all_back(&case).await;
        assert_eq!(case.layer.stats().open, 0, "{}", case.about);
        assert_eq!(case.layer.stats().parked, 0, "{}", case.about);
        take(&mut case, false).await;
    }
}
