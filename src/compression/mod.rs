//! gzip for streaming bodies: flushes when idle, costs little while idle, closes in order.
//!
//! [`CompressionLayer`] compresses the responses of any service whose client accepts it. A body
//! whose length is known and small is compressed at once and keeps a `Content-Length`; every other
//! body is a stream. What a stream's inner body has given is decodable by the client as soon as the
//! inner body has nothing more ready, and a gzip stream that waits need not hold a compressor.
//!
//! # Idle streams
//!
//! Only gzip can be parked. A stream of `br`, `zstd` or `deflate` holds its encoder (hundreds of kilobytes,
//! megabytes at high levels) from its first byte to its end, idle or not: that is not limited by
//! [`resident_limit`](CompressionLayer::resident_limit) and not counted in [`CompressionStats::resident`]. With
//! many idle streams, leave those codings off, or put gzip first with [`prefer`](CompressionLayer::prefer).
//!
//! # Where it runs
//!
//! Up to 32 KiB of ready input where the body is polled, of gzip 36 or 48 KiB if that is all (less, or nothing, at the slow
//! levels of `br` and `zstd`); more goes to tokio's blocking pool in small blocks, on as many threads as there are cores. The
//! beginning of a long gzip stream, half of what is ready at once and at most 128 KiB, is encoded where it is polled
//! meanwhile, unless those threads are busy, or there is no [random padding](CompressionLayer::random_padding). A pool
//! without a thread to spare holds no body up: after 50 ms, or at once on a runtime without timers, bodies do those
//! blocks where they are polled. So they do outside a runtime.
//!
//! # Compared with `tower_http::compression`
//!
//! Event streams are compressed. An idle gzip stream costs kilobytes instead of hundreds of them. ETag,
//! digests, `Vary`, HEAD, 204, 206, 304 and `no-transform` follow RFC 9110. An inner body that ends
//! short of its promised length, fails or panics never looks complete to the client. Codings
//! other than gzip are switched on one by one, so another crate's features cannot change yours.
//!
//! What it counts: [`CompressionStats`], and with the feature `metrics` the last rows of the table in
//! [Observability](crate#observability).

// | file | what it is |
// |---|---|
// | `layer`, `options` | what a layer is told, and what all its streams share |
// | `service` | the future that decides what becomes of a response |
// | `negotiation`, `predicate`, `headers` | pure functions of heads: which coding, which types, what is edited |
// | `body` | the body: a stream, whole, or as it came |
// | `whole` | small bodies of known size, sent with the length that they are compressed to |
// | `stream`, `phase` | one stream: what to do next, given what the inner body said; where it stands |
// | `source` | the inner body, and whether it keeps its promises |
// | `gathered` | what it gave and no encoder has yet |
// | `encoder`, `codecs`, `pool` | bytes to bytes: gzip, which can be parked; the others; gzip's compressors |
// | `output` | what comes out of gzip's compressors, and the buffer for it |
// | `away` | a stream's encoder on other threads: `offload` on one at a time, `parallel` on several |
// | `lead` | a long gzip stream's beginning, encoded here meanwhile |
// | `workers`, `queue` | those threads, and what is done where there are none; who is next |
// | `stats` | what is counted |

mod away;
mod body;
#[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
mod codecs;
mod encoder;
mod gathered;
mod headers;
mod layer;
mod lead;
mod negotiation;
mod offload;
mod options;
mod output;
mod parallel;
mod phase;
mod pool;
mod predicate;
mod queue;
mod service;
mod source;
mod stats;
mod stream;
mod whole;
mod workers;

pub use body::CompressionBody;
pub use headers::Compress;
pub use layer::CompressionLayer;
pub use negotiation::Coding;
pub use options::Flush;
pub use service::{Compression, CompressionFuture};
pub use stats::CompressionStats;

#[cfg(test)]
mod tests;
