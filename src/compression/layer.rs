//! The layer and its options.

use std::sync::Arc;

use http::response::Parts;
use tower_layer::Layer;

use super::{
    negotiation::Coding,
    options::{Core, Flush, Options, Predicate, WINDOW},
    service::Compression,
    stats::{CompressionStats, Stats},
};

/// Compresses response bodies for clients that accept it.
///
/// ```
/// use bodyguard::compression::CompressionLayer;
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let service = ServiceBuilder::new()
///     .layer(CompressionLayer::new())
///     .service(service_fn(async |_: Request<()>| {
///         Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from("news ".repeat(100)))))
///     }));
/// let request = Request::builder().header("accept-encoding", "gzip").body(())?;
/// let response = service.oneshot(request).await?;
/// assert_eq!(response.headers()["content-encoding"], "gzip");
/// assert!(response.into_body().collect().await?.to_bytes().len() < 200);
/// # Ok(())
/// # }
/// ```
///
/// Clones, and the services made by them, share one pool of compressors; each builder method
/// begins a new one.
///
/// An encoded answer keeps no digest and no `Accept-Ranges` of the plain one, and a strong `ETag` becomes weak
/// (RFC 9110, 8.8.1), in trailers too. An answer to PUT, PATCH, POST or DELETE keeps its `ETag`: that is not of
/// the content but of what the target has become (8.8), and has to be strong in the next `If-Match` (13.1.1).
///
/// Put it *outside* layers that watch how a body ends, so that they judge the handler's own bytes.
///
/// # Compared with `tower_http::compression::CompressionLayer`
///
/// `CompressionLayer::new()` is the same line, but for the codings: a feature alone (`br`, `zstd`,
/// `deflate`) changes nothing, and without it `.br(..)` and so on are not there.
///
/// | there | here |
/// |---|---|
/// | `no_br()`, `no_zstd()`, `no_deflate()` | not needed: off until `.br(true)` and so on |
/// | `no_gzip()` | `.gzip(false)` |
/// | `quality(CompressionLevel::Precise(n))` | `.level(n)` for gzip and deflate; `.br_level(n)`, `.zstd_level(n)` |
/// | `SizeAbove::new(32)`, the default | `.min_size(32)`; the default is 200 |
/// | `NotForContentType::IMAGES`, `GRPC` | among the default rules |
/// | `NotForContentType::SSE` | event streams are compressed: they are flushed |
/// | `NotForContentType::new("text/csv")` | `.compress_when(..)` on the head: see [there](Self::compress_when) |
/// | `compress_when(p)`, in place of the default rules | `.compress_when(p)`, on top of them; a handler overrides them by [`Compress::Always`](super::Compress) |
#[must_use = "a layer does nothing unless it is applied to a service"]
#[derive(Clone, Debug)]
pub struct CompressionLayer {
    core: Arc<Core>,
}

impl CompressionLayer {
    /// gzip at the default level, flushed when idle.
    pub fn new() -> Self {
        Self {
            core: Arc::new(Core::new(Options::default())),
        }
    }

    /// Whether gzip is offered. Default: true.
    pub fn gzip(self, enable: bool) -> Self {
        self.coding(Coding::Gzip, enable)
    }

    /// Whether Brotli is offered. Default: false, with the feature `br` too.
    ///
    /// Its streams hold their encoder while idle, see [the module](super#idle-streams).
    #[cfg(feature = "br")]
    pub fn br(self, enable: bool) -> Self {
        self.coding(Coding::Brotli, enable)
    }

    /// Whether Zstandard is offered. Default: false, with the feature `zstd` too.
    ///
    /// Its streams hold their encoder while idle, see [the module](super#idle-streams).
    #[cfg(feature = "zstd")]
    pub fn zstd(self, enable: bool) -> Self {
        self.coding(Coding::Zstd, enable)
    }

    /// Whether `deflate` (the zlib format) is offered. Default: false, with the feature `deflate` too.
    ///
    /// Its streams hold their encoder while idle, see [the module](super#idle-streams).
    #[cfg(feature = "deflate")]
    pub fn deflate(self, enable: bool) -> Self {
        self.coding(Coding::Deflate, enable)
    }

    /// The server's order among codings the client weighs equally, best first.
    ///
    /// Codings left out come after those named; one that is not offered, or whose feature is off, is
    /// skipped. Default: zstd, br, gzip, deflate.
    /// Only gzip streams are parked while idle: with many event streams, put gzip first.
    pub fn prefer(self, order: impl IntoIterator<Item = Coding>) -> Self {
        let order = order.into_iter().collect();
        self.with(|options| {
            options.preference = order;
            options.sort_codings();
        })
    }

    /// The level of gzip and deflate, 1 (fast) to 9 (small). Default: 5. Others are taken for the nearest.
    pub fn level(self, level: u32) -> Self {
        self.with(|options| options.level = level.clamp(1, 9))
    }

    /// Brotli's quality, 0 to 11. Default: 4. More is taken for 11.
    ///
    /// From 7 on less is encoded where the body is polled, from 10 on nothing: it would take too long.
    #[cfg(feature = "br")]
    pub fn br_level(self, level: u32) -> Self {
        self.with(|options| options.br_level = level.min(11) as i32)
    }

    /// Zstandard's level, 1 to 19. Default: 3. Others are taken for the nearest.
    ///
    /// From 10 on less is encoded where the body is polled, from 12 on nothing: it would take too long.
    #[cfg(feature = "zstd")]
    pub fn zstd_level(self, level: u32) -> Self {
        self.with(|options| options.zstd_level = level.clamp(1, 19) as i32)
    }

    /// Bodies known to be smaller than this many bytes are left alone. Default: 200.
    ///
    /// 0 counts as 1: an empty body is never compressed. Streams of unknown length are not asked, nor is
    /// any body for a client that refuses the plain form (`identity;q=0`). Smaller bodies that go out plain
    /// have no `Vary`, so a shared cache may still give such a client what it stored for others.
    pub fn min_size(self, bytes: u64) -> Self {
        self.with(|options| options.min_size = bytes)
    }

    /// When a stream's output is made decodable. Default: [`Flush::WhenIdle`].
    pub fn flush(self, flush: Flush) -> Self {
        self.with(|options| options.flush = flush)
    }

    /// Bytes of plain text a parked gzip stream keeps, at most 32 KiB. Default: 6 KiB.
    ///
    /// More history costs that much memory for each idle stream, and makes the next event smaller. Other
    /// codings are not parked.
    pub fn history(self, bytes: usize) -> Self {
        self.with(|options| options.history = bytes.min(WINDOW))
    }

    /// gzip compressors that outlive their use, about 300 KB each. Default: 32.
    ///
    /// A stream that goes idle keeps its compressor while three quarters of these suffice, and is
    /// parked otherwise. Streams at work are never refused one. Encoders of other codings are not
    /// limited: each of their streams has one.
    pub fn resident_limit(self, compressors: usize) -> Self {
        self.with(|options| options.resident_limit = compressors)
    }

    /// Compresses one large gzip stream on several threads. Default: false.
    pub fn parallel(self, enable: bool) -> Self {
        self.with(|options| options.parallel = enable)
    }

    /// The most random bytes added to a gzip response against BREACH. Default: 100.
    ///
    /// They are its file-name field, which decoders skip. So equal input gives another output, of another
    /// length, each time. With 0 (for caches, and tests that compare bytes) equal text gives equal bytes, whatever
    /// frames it comes in and however busy the machine is; then no stream's beginning is encoded where it is polled
    /// while other threads begin behind it. That is so for bodies that are never pending, and with [`Flush::Never`] for
    /// all: elsewhere a few bytes depend on where it was flushed, and on whether it was parked. (With
    /// [`Flush::EveryFrame`] frames show, and with [`parallel`](Self::parallel) it holds for bodies that are never pending,
    /// inside a runtime, on machines of as many cores.)
    pub fn random_padding(self, most: u16) -> Self {
        self.with(|options| options.random_padding = most)
    }

    /// Answers 406, without calling the service, where nothing on offer is acceptable.
    ///
    /// By default such a client gets the plain representation. Default: false.
    pub fn strict(self, enable: bool) -> Self {
        self.with(|options| options.strict = enable)
    }

    /// Compresses only responses for which `allows` is true, on top of the default rules.
    ///
    /// A second call replaces the first: join conditions by `&&`. The default rules encode no content of:
    ///
    /// - statuses 1xx, 204, 205, 206 and 304, answers to CONNECT, and whatever has a `Content-Range`, a
    ///   `Content-Encoding` other than `identity`, or `Cache-Control: no-transform` (a 304 still gets the
    ///   head of the response it stands for: `Vary`, a weak ETag, no length and no digests);
    /// - bodies known to be smaller than [`min_size`](Self::min_size), but for clients that refuse the plain
    ///   form (`identity;q=0`);
    /// - by `Content-Type`: images but SVG and BMP, audio, video, WOFF and WOFF2 fonts, archives
    ///   (zip, gzip, xz, 7z, zstd and the like), gRPC but gRPC-Web. All else, and no type, is compressed.
    ///
    /// A handler overrides size, types and `allows` with a [`Compress`](super::Compress) extension.
    ///
    /// ```
    /// # use bodyguard::CompressionLayer;
    /// use http::header::CONTENT_TYPE;
    ///
    /// let layer = CompressionLayer::new().compress_when(|head| {
    ///     let kind = head.headers.get(CONTENT_TYPE);
    ///     !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/csv"))
    /// });
    /// # let _ = layer;
    /// ```
    pub fn compress_when(self, allows: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.with(|options| options.predicate = Some(Predicate::new(allows)))
    }

    /// What this layer's streams hold and have done. Cheap.
    pub fn stats(&self) -> CompressionStats {
        Stats::snapshot(&self.core)
    }

    fn coding(self, coding: Coding, enable: bool) -> Self {
        self.with(|options| {
            options.codings.retain(|other| *other != coding);
            if enable {
                options.codings.push(coding);
                options.sort_codings();
            }
        })
    }

    fn with(self, edit: impl FnOnce(&mut Options)) -> Self {
        let mut options = self.core.options.clone();
        edit(&mut options);
        Self {
            core: Arc::new(Core::new(options)),
        }
    }
}

impl Default for CompressionLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for CompressionLayer {
    type Service = Compression<S>;

    fn layer(&self, inner: S) -> Compression<S> {
        Compression::new(inner, Arc::clone(&self.core))
    }
}

#[cfg(test)]
impl CompressionLayer {
    /// Compressors that streams hold now.
    pub(super) fn core_lent(&self) -> usize {
        self.core.pool.lent()
    }

    /// The largest buffer that a free compressor keeps.
    pub(super) fn core_scratch(&self) -> usize {
        self.core.pool.largest_scratch()
    }

    /// How often streams were parked, threads were had, and blocks were made in parallel.
    pub(super) fn core_tally(&self) -> (usize, u64, usize) {
        use std::sync::atomic::Ordering::Relaxed;
        let tally = &self.core.stats.tally;
        let (parked, blocks) = (tally.parked.load(Relaxed), tally.blocks.load(Relaxed));
        (parked, self.core.workers.stints(), blocks)
    }
}
