//! What `/api/streams` shows: live scopes from the supervisor, and the last end reports.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bodyguard::{EndReport, LiveScope, Supervisor};
use serde::Serialize;

/// How many end reports are kept.
const KEPT: usize = 100;

/// Clones show the same board.
#[derive(Clone)]
pub(crate) struct Board {
    supervisor: Supervisor,
    ended: Arc<Mutex<Book>>,
    closers: Arc<Closers>,
    readers: Arc<AtomicUsize>,
    exports_committed: Arc<AtomicI64>,
}

/// One reader of the event stream, counted until it drops.
pub(crate) struct Reader(Arc<AtomicUsize>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A closer that a handler registers; the board counts for itself which of them have run.
pub(crate) struct Closer(Arc<Closers>);

impl Closer {
    pub(crate) fn runs(self) {
        self.0.run.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Closers {
    registered: AtomicU64,
    run: AtomicU64,
}

/// The last reports, and the sums of all.
#[derive(Default)]
struct Book {
    last: VecDeque<Ended>,
    totals: Totals,
}

/// Since the start, without the board's own requests.
#[derive(Clone, Default, Serialize)]
struct Totals {
    outcomes: BTreeMap<&'static str, u64>,
    closers_registered: u64,
    closers_run: u64,
    closers_failed: u64,
    closers_unrun: u64,
    tasks_panicked: u64,
    last_error: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct View {
    live: Vec<Live>,
    ended: Vec<Ended>,
    totals: Totals,
    feeds: Feeds,
    readers: usize,
    exports_committed: i64,
}

#[derive(Serialize)]
struct Feeds {
    news: usize,
    weather: usize,
}

#[derive(Serialize)]
struct Live {
    id: u64,
    method: String,
    path: String,
    age_ms: Option<u64>,
    bytes: u64,
    tasks: usize,
    closers: usize,
    phase: &'static str,
}

#[derive(Clone, Serialize)]
struct Ended {
    id: u64,
    method: String,
    path: String,
    outcome: &'static str,
    status: Option<u16>,
    bytes: u64,
    frames: u64,
    duration_ms: Option<u64>,
    teardown_ms: Option<u64>,
    closers_run: u64,
    closers_failed: u64,
    tasks_joined: u64,
    tasks_cancelled: u64,
    tasks_panicked: u64,
    client_gone: bool,
    errors: Vec<String>,
}

impl Board {
    pub(crate) fn new(supervisor: &Supervisor) -> Self {
        Self {
            supervisor: supervisor.clone(),
            ended: Arc::default(),
            closers: Arc::default(),
            readers: Arc::default(),
            exports_committed: Arc::default(),
        }
    }

    /// Writes a report down; the board itself is no news.
    pub(crate) fn ended(&self, report: &EndReport) {
        if report.uri.path().starts_with("/api/") {
            return;
        }
        let mut book = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        book.last.truncate(KEPT - 1);
        book.last.push_front(Ended::from(report));
        let totals = &mut book.totals;
        *totals
            .outcomes
            .entry(report.outcome().as_str())
            .or_default() += 1;
        totals.closers_failed += report.counts.closers_failed;
        totals.closers_unrun += report.counts.closers_unrun;
        totals.tasks_panicked += report.counts.tasks_panicked;
        if let Some(error) = report.errors.last() {
            totals.last_error = Some(format!("{}: {error}", report.uri.path()));
        }
    }

    /// Counts a closer as registered.
    pub(crate) fn closer(&self) -> Closer {
        self.closers.registered.fetch_add(1, Ordering::Relaxed);
        Closer(self.closers.clone())
    }

    pub(crate) fn reader(&self) -> Reader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Reader(self.readers.clone())
    }

    /// How many exports the database holds at the start.
    pub(crate) fn exports_committed(&self, exports: i64) {
        self.exports_committed.store(exports, Ordering::Relaxed);
    }

    /// One more. Asking the database would take a second connection, which may not be free.
    pub(crate) fn export_committed(&self) {
        self.exports_committed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn view(&self, (news, weather): (usize, usize)) -> View {
        let live = self.supervisor.snapshot().iter().map(Live::from).collect();
        let book = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        View {
            live,
            ended: book.last.iter().cloned().collect(),
            totals: Totals {
                closers_registered: self.closers.registered.load(Ordering::Relaxed),
                closers_run: self.closers.run.load(Ordering::Relaxed),
                ..book.totals.clone()
            },
            feeds: Feeds { news, weather },
            readers: self.readers.load(Ordering::Relaxed),
            exports_committed: self.exports_committed.load(Ordering::Relaxed),
        }
    }
}

impl From<&LiveScope> for Live {
    fn from(scope: &LiveScope) -> Self {
        Self {
            id: scope.id,
            method: scope.method.to_string(),
            path: scope.uri.path().to_owned(),
            age_ms: scope.age.map(millis),
            bytes: scope.bytes,
            tasks: scope.tasks,
            closers: scope.closers,
            phase: scope.phase.as_str(),
        }
    }
}

impl From<&EndReport> for Ended {
    fn from(report: &EndReport) -> Self {
        let counts = &report.counts;
        Self {
            id: report.id,
            method: report.method.to_string(),
            path: report.uri.path().to_owned(),
            outcome: report.outcome().as_str(),
            status: report.status().map(|status| status.as_u16()),
            bytes: report.bytes,
            frames: report.frames,
            duration_ms: report.duration.map(millis),
            teardown_ms: report.teardown.map(millis),
            closers_run: counts.closers_run,
            closers_failed: counts.closers_failed,
            tasks_joined: counts.tasks_joined,
            tasks_cancelled: counts.tasks_cancelled,
            tasks_panicked: counts.tasks_panicked,
            client_gone: report.ending.client_gone(),
            errors: report.errors.iter().map(ToString::to_string).collect(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
