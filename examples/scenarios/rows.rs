//! The rows: what a client sends, what the handler is at, how the client leaves, and who must see it.

/// What is written before the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    Get,
    /// And a second one right behind it.
    PipelinedGet,
    /// And an empty line behind it.
    StrayCrlf,
    /// 100 bytes in one segment with the head.
    SmallPost,
    /// 40,000 bytes: more than hyper reads at once, less than the socket buffers.
    Post,
    /// Half of 40,000 bytes.
    HalfPost,
    /// Half of 100 bytes.
    HalfSmallPost,
    /// As much as goes out while nobody reads it: more than the socket buffers.
    LargePost,
}

/// What the server is at when the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    Pends,
    /// One frame is out, and no other comes.
    Idles,
    DropsUpload,
    HoldsUpload,
    /// The first frame of it, and then no more.
    ReadsSomeUpload,
    /// Until the end, or an error; then it pends.
    ReadsUpload,
    /// A body without end, for a client that reads nothing.
    Floods,
    /// Pends until it is told to go on, then answers.
    AnswersLater,
    /// One frame, and the others once it is told to go on.
    FlowsLater,
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    Fin,
    Rst,
    /// It keeps its receiving side, and reads nothing.
    ShutdownWrite,
    /// The end of TLS, then FIN.
    CloseNotify,
    RstStream,
    GoAway,
    /// It only stops reading.
    Stays,
    /// It shuts its write side down and reads the whole response.
    HalfCloses,
    /// Then the server writes.
    FinThenWrite,
}

/// How the row is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Bare hyper.
    Hyper,
    /// Bare axum.
    Axum,
    /// Bodyguard's layer behind an ordinary listener.
    Layer,
    /// The layer, and `net::serve` (over TLS: hyper on a `WatchedStream`).
    Net,
    /// The layer, and `axum::serve` on a `WatchedListener`.
    AxumNet,
}

pub(crate) const SETUPS: [Setup; 5] = [
    Setup::Hyper,
    Setup::Axum,
    Setup::Layer,
    Setup::Net,
    Setup::AxumNet,
];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) http2: bool,
    pub(crate) tls: bool,
    pub(crate) half_close: bool,
    /// With the layer's `drain_request`.
    pub(crate) drain: bool,
    pub(crate) sends: Sends,
    pub(crate) does: Does,
    pub(crate) leaves: Leaves,
    /// Seen by: bare hyper and axum, the layer alone, the layer with the watched listener.
    pub(crate) bare: bool,
    pub(crate) layer: bool,
    pub(crate) watched: bool,
    /// Where somebody does not see it.
    pub(crate) why: &'static str,
}

const BYTES_BEHIND: &str = "hyper stops reading at bytes behind the request";
const NOT_READ: &str = "hyper reads no further than the handler does";
const HIDDEN: &str = "TCP: the FIN waits behind bytes that nobody reads; see drain_request";
const HELD: &str = "TCP: as without it; only what the handler lets go of is read away";
const HIS_RIGHT: &str = "a half-close is the client's right; TCP shows a close at the next write";
const OWN_READ: &str = "the handler's own read fails, and the handler goes on";
const STALLS: &str = "no disconnect: the connection is open (the stall time-out's work)";
const GOES_ON: &str = "no disconnect: a GOAWAY lets open streams finish";
const HALF_OPEN: &str = "no disconnect: the client reads on, and gets its whole response";

impl Setup {
    pub(crate) fn layered(self) -> bool {
        !matches!(self, Self::Hyper | Self::Axum)
    }

    pub(crate) fn watched(self) -> bool {
        matches!(self, Self::Net | Self::AxumNet)
    }
}

impl Row {
    /// Seen by all, over HTTP/1.1.
    fn new(sends: Sends, does: Does, leaves: Leaves) -> Self {
        Self {
            http2: false,
            tls: false,
            half_close: false,
            drain: false,
            sends,
            does,
            leaves,
            bare: true,
            layer: true,
            watched: true,
            why: "",
        }
    }

    fn tls(self) -> Self {
        Self { tls: true, ..self }
    }

    fn half_close(mut self) -> Self {
        self.half_close = true;
        self
    }

    /// hyper does not see it, so that it takes the watched listener.
    fn blind(self, why: &'static str) -> Self {
        Self {
            bare: false,
            layer: false,
            why,
            ..self
        }
    }

    fn nobody(self, why: &'static str) -> Self {
        Self {
            watched: false,
            ..self.blind(why)
        }
    }

    /// Who must see it; `None` where the row cannot be served so.
    pub(crate) fn expected(&self, setup: Setup) -> Option<bool> {
        // `axum::serve` has no TLS of its own and does not set hyper's `half_close`.
        let hyper_only = self.tls || self.half_close;
        match setup {
            Setup::Hyper | Setup::Axum | Setup::AxumNet if self.drain => None,
            Setup::Axum | Setup::AxumNet if hyper_only => None,
            Setup::Hyper | Setup::Axum => Some(self.bare),
            Setup::Layer => Some(self.layer),
            Setup::Net | Setup::AxumNet => Some(self.watched),
        }
    }
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = gets(false);
    rows.extend(uploads());
    rows.extend(floods());
    rows.extend(half_closed());
    rows.extend(gets(true));
    rows.extend(http2());
    // Rows that are served alike stand together.
    rows.sort_by_key(|row| (row.http2, row.half_close, row.drain, row.tls));
    rows
}

const AWAY: [Leaves; 3] = [Leaves::Fin, Leaves::Rst, Leaves::ShutdownWrite];
const GETS: [Sends; 3] = [Sends::Get, Sends::PipelinedGet, Sends::StrayCrlf];

fn gets(tls: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for does in [Does::Pends, Does::Idles] {
        for sends in GETS {
            for leaves in AWAY.into_iter().chain(tls.then_some(Leaves::CloseNotify)) {
                let row = Row::new(sends, does, leaves);
                let row = if tls { row.tls() } else { row };
                rows.push(match sends {
                    Sends::Get => row,
                    _ => row.blind(BYTES_BEHIND),
                });
            }
        }
    }
    rows
}

fn uploads() -> Vec<Row> {
    use Does::{DropsUpload, HoldsUpload, Idles, ReadsSomeUpload, ReadsUpload};
    use Sends::{HalfPost, HalfSmallPost, LargePost, Post, SmallPost};
    let mut rows = Vec::new();
    for does in [DropsUpload, HoldsUpload, Idles] {
        rows.extend(AWAY.map(|leaves| Row::new(SmallPost, does, leaves)));
    }
    for sends in [Post, HalfPost] {
        for does in [DropsUpload, HoldsUpload, ReadsSomeUpload, Idles] {
            rows.extend(AWAY.map(|leaves| Row::new(sends, does, leaves).blind(NOT_READ)));
        }
    }
    for does in [DropsUpload, HoldsUpload, ReadsSomeUpload, Idles] {
        rows.extend(AWAY.map(|leaves| {
            let row = Row::new(LargePost, does, leaves);
            match leaves {
                Leaves::Rst => row.blind(NOT_READ),
                _ => row.nobody(HIDDEN),
            }
        }));
    }
    for does in [DropsUpload, HoldsUpload, ReadsSomeUpload, Idles] {
        for leaves in [Leaves::Fin, Leaves::ShutdownWrite] {
            let mut row = Row::new(LargePost, does, leaves);
            row.drain = true;
            rows.push(match does {
                HoldsUpload | ReadsSomeUpload => row.nobody(HELD),
                _ => row,
            });
        }
    }
    for leaves in AWAY {
        let row = Row::new(Post, HoldsUpload, leaves).tls();
        rows.push(row.blind(NOT_READ));
    }
    rows.extend(AWAY.map(|leaves| Row {
        layer: false,
        why: OWN_READ,
        ..Row::new(HalfSmallPost, ReadsUpload, leaves)
    }));
    rows
}

fn floods() -> Vec<Row> {
    let mut rows = Vec::new();
    for sends in [Sends::Get, Sends::PipelinedGet] {
        for leaves in [Leaves::Fin, Leaves::Rst] {
            rows.push(Row::new(sends, Does::Floods, leaves));
        }
    }
    let row = Row::new(Sends::Get, Does::Floods, Leaves::ShutdownWrite);
    rows.push(row);
    for sends in [Sends::PipelinedGet, Sends::StrayCrlf] {
        let row = Row::new(sends, Does::Floods, Leaves::ShutdownWrite);
        rows.push(row.blind(BYTES_BEHIND));
    }
    rows.push(Row::new(Sends::Get, Does::Floods, Leaves::Stays).nobody(STALLS));
    rows
}

fn half_closed() -> Vec<Row> {
    let mut rows = Vec::new();
    for does in [Does::Pends, Does::Idles] {
        for sends in GETS {
            let row = Row::new(sends, does, Leaves::Rst).half_close();
            rows.push(row.blind("hyper does not read under half_close"));
        }
        let row = Row::new(Sends::Get, does, Leaves::Fin).half_close();
        rows.push(row.nobody(HIS_RIGHT));
    }
    for does in [Does::AnswersLater, Does::FlowsLater] {
        for sends in GETS {
            let row = Row::new(sends, does, Leaves::FinThenWrite).half_close();
            rows.push(row.blind("hyper neither reads nor writes again, and misses the RST"));
        }
        for sends in GETS {
            let row = Row::new(sends, does, Leaves::HalfCloses).half_close();
            rows.push(row.nobody(HALF_OPEN));
        }
    }
    let row = Row::new(Sends::Get, Does::Idles, Leaves::Rst).half_close();
    rows.push(row.tls().blind("hyper does not read under half_close"));
    let row = Row::new(Sends::Get, Does::FlowsLater, Leaves::HalfCloses).half_close();
    rows.push(row.tls().nobody(HALF_OPEN));
    rows
}

fn http2() -> Vec<Row> {
    use Does::{Floods, HoldsUpload, Idles, Pends};
    use Leaves::{Fin, GoAway, Rst, RstStream, ShutdownWrite, Stays};
    let mut rows = Vec::new();
    for does in [Pends, Idles] {
        for leaves in [RstStream, Fin, Rst, ShutdownWrite] {
            rows.push(Row::new(Sends::Get, does, leaves));
        }
        rows.push(Row::new(Sends::Get, does, GoAway).nobody(GOES_ON));
    }
    for leaves in [RstStream, Fin, Rst] {
        rows.push(Row::new(Sends::LargePost, HoldsUpload, leaves));
        rows.push(Row::new(Sends::Get, Floods, leaves));
        rows.push(Row::new(Sends::Get, Idles, leaves).tls());
    }
    rows.push(Row::new(Sends::Get, Floods, Stays).nobody(STALLS));
    for leaves in [RstStream, Fin, Rst] {
        rows.push(Row::new(Sends::Get, Idles, leaves).half_close());
    }
    for row in &mut rows {
        row.http2 = true;
    }
    rows
}
