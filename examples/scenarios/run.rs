//! One row in one setup: a fresh server, a client that leaves, and whether it is seen.

use std::{sync::Arc, time::Duration};

use bodyguard::BoxError;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    client::Client,
    rows::{Does, Leaves, Row, SETUPS, Sends, Setup},
    server::{DRAINED, Server},
    stage::{Event, How, Stage, WHOLE},
};

/// Far above anything seen, for whatever is not the sighting itself.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// How long a request is there before its client leaves.
    pub(crate) stay: Duration,
    /// How long to wait for what must be seen.
    pub(crate) seen: Duration,
    /// How long to wait for what must not be.
    pub(crate) unseen: Duration,
    /// How soon the watched listener has to see it.
    pub(crate) at_most: Duration,
    /// How many run at once.
    pub(crate) parallel: usize,
}

#[derive(Debug)]
pub(crate) enum Saw {
    Seen { how: How, after: Duration },
    NotSeen,
}

/// What became of one row in each setup; `None` where it does not apply.
pub(crate) struct Done {
    pub(crate) row: Row,
    pub(crate) cells: [Option<Result<Saw, String>>; SETUPS.len()],
}

impl Done {
    /// Whether this setup did what is expected of it.
    pub(crate) fn is_met(&self, setup: usize, at_most: Duration) -> bool {
        let expected = self.row.expected(SETUPS[setup]);
        match (&self.cells[setup], expected) {
            (None, None) => true,
            (Some(Ok(Saw::Seen { how, after })), Some(true)) => {
                how.is_left() && (*after <= at_most || !SETUPS[setup].watched())
            }
            (Some(Ok(Saw::NotSeen)), Some(false)) => true,
            _ => false,
        }
    }
}

/// All rows in all setups.
pub(crate) async fn run_all(rows: Vec<Row>, times: Times) -> Vec<Done> {
    let permits = Arc::new(Semaphore::new(times.parallel));
    let mut running = JoinSet::new();
    for (number, row) in rows.iter().copied().enumerate() {
        for (column, setup) in SETUPS.into_iter().enumerate() {
            let permits = permits.clone();
            if row.expected(setup).is_none() {
                continue;
            }
            running.spawn(async move {
                let _permit = permits.acquire().await;
                let saw = match timeout(PATIENCE + times.seen, run(&row, setup, &times)).await {
                    Ok(saw) => saw.map_err(|error| error.to_string()),
                    Err(_) => Err("it hangs".to_owned()),
                };
                (number, column, saw)
            });
        }
    }
    let done = rows.into_iter().map(|row| Done {
        row,
        cells: [const { None }; SETUPS.len()],
    });
    let mut done: Vec<_> = done.collect();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((number, column, saw)) => done[number].cells[column] = Some(saw),
            // The cell stays empty, which is not what is expected.
            Err(panicked) => eprintln!("{panicked}"),
        }
    }
    done
}

async fn run(row: &Row, setup: Setup, times: &Times) -> Result<Saw, BoxError> {
    let mut server = Server::start(row, setup).await?;
    let mut client = Client::connect(&server, row).await?;
    client.send(row.sends).await?;
    started(&mut server).await?;
    let frame = matches!(row.does, Does::Idles | Does::FlowsLater);
    if frame || row.does == Does::Floods {
        client.receives(frame).await?;
    }
    if row.sends == Sends::LargePost && !row.http2 {
        let sent = client.fill(DRAINED / 2).await?;
        if sent < 100_000 {
            return Err(format!("the buffers took only {sent} bytes").into());
        }
    }
    if row.does == Does::Floods {
        stops_flowing(&server.stage).await;
    }
    quiet(&mut server, times.stay, "before the client left").await?;

    let left = client.leave(row.leaves).await?;
    let mut at = left.at;
    let mut client = left.client;
    match row.leaves {
        Leaves::HalfCloses => {
            quiet(&mut server, times.unseen, "though the client reads on").await?;
            server.stage.go_on();
            let client = client.as_mut().ok_or("half-closed clients stay")?;
            let got = client.read_to_end().await?;
            let got = got.iter().filter(|byte| **byte == b'#').count();
            let requests = 1 + usize::from(row.sends == Sends::PipelinedGet);
            if got != WHOLE * requests {
                return Err(format!("{got} bytes of {}", WHOLE * requests).into());
            }
            quiet(&mut server, Duration::from_millis(20), "though it read all").await?;
            return Ok(Saw::NotSeen);
        }
        Leaves::FinThenWrite => {
            quiet(&mut server, times.stay, "though nothing was written").await?;
            at = std::time::Instant::now();
            server.stage.go_on();
        }
        _ => {}
    }
    let wait = match row.expected(setup) {
        Some(true) => times.seen,
        _ => times.unseen,
    };
    let saw = match timeout(wait, seen(&mut server)).await {
        Ok(Some((how, when))) => Saw::Seen {
            how,
            after: when.saturating_duration_since(at),
        },
        Ok(None) => return Err("the server is gone".into()),
        Err(_) => Saw::NotSeen,
    };
    drop(client);
    Ok(saw)
}

async fn started(server: &mut Server) -> Result<(), BoxError> {
    match server.events.recv().await {
        Some(Event::Started) => Ok(()),
        other => Err(format!("instead of the handler's start: {other:?}").into()),
    }
}

async fn seen(server: &mut Server) -> Option<(How, std::time::Instant)> {
    loop {
        match server.events.recv().await? {
            Event::Seen(how, when) => return Some((how, when)),
            // The handler of a pipelined request.
            Event::Started => {}
        }
    }
}

/// Nobody may be taken for gone for this long.
async fn quiet(server: &mut Server, lasts: Duration, when: &str) -> Result<(), BoxError> {
    match timeout(lasts, seen(server)).await {
        Ok(Some((how, _))) => Err(format!("seen ({how:?}) {when}").into()),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Waits until the body is not asked any more.
async fn stops_flowing(stage: &Stage) {
    let (mut before, mut since) = (0, Instant::now());
    while before == 0 || since.elapsed() < Duration::from_millis(30) {
        let frames = stage.frames();
        if frames != before {
            (before, since) = (frames, Instant::now());
        }
        sleep(Duration::from_millis(2)).await;
    }
}
