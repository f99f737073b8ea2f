//! The wait for every scope at shutdown, and its report.

use std::{fmt, future::IntoFuture, pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Member, Released, Supervisor};

/// What a drain found: how many scopes ended in which way, and what was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Scopes that ended by themselves during the drain.
    pub complete: u64,
    /// Scopes that were ended by [`Shutdown::end_now`](crate::Shutdown::end_now).
    pub ended: u64,
    /// Scopes that were aborted: by policy, or because the time was up.
    pub aborted: u64,
    /// Closers that could not run.
    pub unrun: u64,
    /// What still runs, by name: scopes with their tasks and closers.
    pub stuck: Vec<String>,
}

impl DrainReport {
    /// Whether nothing was left running and every closer ran.
    pub fn is_clean(&self) -> bool {
        self.stuck.is_empty() && self.unrun == 0
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} complete, {} ended, {} aborted, {} closers unrun, {} stuck",
            self.complete,
            self.ended,
            self.aborted,
            self.unrun,
            self.stuck.len()
        )?;
        for name in &self.stuck {
            write!(f, "\n  stuck: {name}")?;
        }
        Ok(())
    }
}

/// What was released since the drain began.
#[derive(Debug, Default)]
pub(super) struct Tally {
    report: DrainReport,
}

impl Tally {
    pub(super) fn count(&mut self, how: Released, unrun: u64) {
        match how {
            Released::ByItself => self.report.complete += 1,
            Released::Ended => self.report.ended += 1,
            Released::Aborted => self.report.aborted += 1,
        }
        self.report.unrun += unrun;
    }

    pub(super) fn count_unrun(&mut self) {
        self.report.unrun += 1;
    }
}

/// That long from now; a time too far away to be counted is as good as in thirty years.
fn after(duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + duration.min(FAR)
}

/// What a drain has at the least, if its deadline is over.
pub(crate) const LEAST: Duration = Duration::from_millis(100);

/// What is kept of a deadline for what is dropped with its connection, to be torn down in.
pub(crate) fn reserve_of(deadline: Duration) -> Duration {
    (deadline / 10).min(Duration::from_secs(1))
}

/// How often a drain that is out of patience looks whether it is of use to serve on.
const LOOKS: u32 = 10;

impl Supervisor {
    /// Tells every scope to end, waits for their teardown, and says what was left.
    ///
    /// Each scope's shutdown policy is applied at once. Scopes still live a quarter of the deadline
    /// (at most 5 s) before it ends are aborted: tasks cancelled, closers run. Their clients are answered,
    /// and those whose end was under way: connections are [told to close](Self::aborting) only once no scope
    /// that is left has an answer to come (its client reads nothing, or has it already), or when half of that
    /// time is over. After the deadline
    /// nothing of any scope is running, or it is named in the report. Responses that begin
    /// while it drains are ended by the same rules, counted from their head.
    ///
    /// **On drop**: a dropped drain waits no longer; the shutdown goes on.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        let end = after(deadline);
        let abort_at = end - (deadline / 4).min(Duration::from_secs(5));
        self.begin_shutdown();
        if !self.idle_by(abort_at).await && !self.answered_by(end).await {
            // Behind the aborts: they may say how their connections are to end.
            self.inner.aborting.fire();
            self.idle_by(end).await;
        }
        let mut report = self.tally().report.clone();
        for member in self.inner.registry.members() {
            report.stuck.extend(member.still_running());
        }
        let background = self.in_background();
        report
            .stuck
            .extend(background.iter().map(|(_, kept)| kept.name.clone()));
        drop(background);
        report
    }

    /// Runs a server of another make, and drains beside it from the start of the shutdown on: all within
    /// `deadline`.
    ///
    /// For servers that wait for their last client, as `axum::serve` with a graceful shutdown does: that waits
    /// for bodies that only the drain ends, and for clients that read nothing. What the server's signal has to
    /// do is to call [`begin_shutdown`](Self::begin_shutdown). Behind the drain the server has what is left of the
    /// deadline, less a tenth (at most 1 s), for last bytes and for what no layer supervises; a client that says
    /// and reads nothing lasts that long. If it ends by itself, without a shutdown, the drain comes then.
    ///
    /// Gives what the server gave, if it has ended, and the report at the end of all.
    ///
    /// **On drop**: the server is dropped; a shutdown that has begun goes on. Connections that a server has
    /// spawned, as axum's does, live on in either case, as long as the runtime.
    ///
    #[cfg_attr(all(feature = "axum", feature = "net"), doc = "```no_run")]
    #[cfg_attr(not(all(feature = "axum", feature = "net")), doc = "```ignore")]
    /// # use axum::Router;
    /// # use bodyguard::{Supervisor, net::{Peer, WatchedListener}};
    /// # use std::time::Duration;
    /// # async fn run(app: Router, supervisor: Supervisor) -> std::io::Result<()> {
    /// let listener = WatchedListener::bind("127.0.0.1:3000").await?;
    /// let service = app.into_make_service_with_connect_info::<Peer>();
    /// let signalled = supervisor.clone();
    /// let server = axum::serve(listener, service).with_graceful_shutdown(async move {
    ///     tokio::signal::ctrl_c().await.expect("signals");
    ///     signalled.begin_shutdown();
    /// });
    /// let (served, report) = supervisor.supervise(server, Duration::from_secs(20)).await;
    /// println!("{report}");
    /// # served.transpose().map(drop)
    /// # }
    /// ```
    pub async fn supervise<S: IntoFuture>(
        &self,
        server: S,
        deadline: Duration,
    ) -> (Option<S::Output>, DrainReport) {
        let mut server = pin!(server.into_future());
        let shutdown = self.own_shutdown_token();
        let mut served = tokio::select! {
            served = server.as_mut() => Some(served),
            () = shutdown.cancelled() => None,
        };
        let end = after(deadline);
        let mut drain = pin!(self.drain(deadline));
        let report = loop {
            tokio::select! {
                output = server.as_mut(), if served.is_none() => served = Some(output),
                report = drain.as_mut() => break report,
            }
        };
        if served.is_some() {
            return (served, report);
        }
        served = timeout_at(end - reserve_of(deadline), server).await.ok();
        (served, self.drain_by(end).await)
    }

    /// Drains what has come meanwhile.
    pub(crate) async fn drain_by(&self, end: Instant) -> DrainReport {
        let rest = end.saturating_duration_since(Instant::now());
        self.drain(rest.max(LEAST)).await
    }

    /// Aborts all that is live, and waits until nothing is (true), or nothing that is has an answer to come, or
    /// for half of what is left until `end`.
    async fn answered_by(&self, end: Instant) -> bool {
        let step = end.saturating_duration_since(Instant::now()) / 2 / LOOKS;
        for _ in 0..LOOKS {
            // Those too that have come since the last look.
            self.everyone().for_each(Member::abort);
            // Before the next: who has been aborted has yet to be polled.
            if self.idle_by(Instant::now() + step).await {
                return true;
            }
            if !self.everyone().any(|member| member.has_an_answer()) {
                break;
            }
        }
        false
    }

    /// All that is live, under other supervisors too.
    fn everyone(&self) -> impl Iterator<Item = Arc<dyn Member>> {
        let members = self.inner.registry.members();
        members.into_iter().chain(self.scopes_in_background())
    }

    /// Waits until nothing is live, or until `time`; true if nothing is.
    async fn idle_by(&self, time: Instant) -> bool {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_idle() {
                return true;
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(time) => return self.is_idle(),
            }
        }
    }
}
