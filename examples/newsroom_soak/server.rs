//! The newsroom as a child process, and what `/proc` and its own board say of it.

use std::{
    env, fs,
    io::{self, BufRead},
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use crate::http1;

/// The argument that makes this program the newsroom.
pub(crate) const ROLE: &str = "--be-the-newsroom";
/// How long things may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than the bridge keeps an idle thread, which has an event loop with descriptors of its own.
const REST: Duration = Duration::from_secs(12);

/// A running newsroom. Killed on drop.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    folder: PathBuf,
}

/// What the process holds.
pub(crate) struct Sizes {
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    pub(crate) heap: u64,
    pub(crate) resident: u64,
}

/// What the board shows once the clients have gone.
pub(crate) struct Left {
    pub(crate) scopes: u64,
    pub(crate) tasks: u64,
    pub(crate) subscriptions: u64,
    pub(crate) totals: Value,
    rows: String,
}

/// How the process ended.
pub(crate) struct End {
    pub(crate) code: Option<i32>,
    pub(crate) last_line: String,
    pub(crate) panics: usize,
}

/// In the child: answers every line on its input with the size of its heap.
pub(crate) fn tell_heap_when_asked(heap: fn() -> u64) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("heap".to_owned());
    thread.spawn(move || {
        for _question in io::stdin().lock().lines().map_while(Result::ok) {
            println!("heap: {}", heap());
        }
    })?;
    Ok(())
}

impl Server {
    pub(crate) async fn start() -> io::Result<Self> {
        let folder = env::temp_dir().join(format!("newsroom-soak-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let database = folder.join("newsroom.sqlite");
        let mut child = Command::new(env::current_exe()?)
            .arg(ROLE)
            .env("BIND", "127.0.0.1:0")
            .env("DATABASE_URL", format!("sqlite://{}", database.display()))
            .env("STALL_SECONDS", "1")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("stderr"))?)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the child has no pipes"));
        };
        let mut server = Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            child,
            stdin,
            stdout: BufReader::new(stdout).lines(),
            folder,
        };
        let addr = server.line("newsroom: http://").await?;
        server.addr = addr.parse().map_err(io::Error::other)?;
        Ok(server)
    }

    /// The rest of the next line that begins so.
    async fn line(&mut self, prefix: &str) -> io::Result<String> {
        while let Some(line) = self.stdout.next_line().await? {
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(rest.to_owned());
            }
        }
        Err(io::Error::other(format!("it ended without \"{prefix}\"")))
    }

    /// Waits until nothing is live, or patience is at its end.
    pub(crate) async fn quiet(&self) -> io::Result<Left> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.left().await?;
            let live = left.scopes + left.tasks + left.subscriptions;
            if live == 0 {
                return Ok(left);
            }
            if Instant::now() > end {
                eprintln!("not quiet: {}", left.rows);
                return Ok(left);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn left(&self) -> io::Result<Left> {
        let response = http1::get(self.addr, "/api/streams").await?;
        let body = response.split("\r\n\r\n").nth(1).unwrap_or_default();
        let board: Value = serde_json::from_str(body)?;
        let live = board["live"].as_array().into_iter().flatten();
        let live: Vec<_> = live.filter(|row| row["path"] != "/api/streams").collect();
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let feeds = &board["feeds"];
        Ok(Left {
            scopes: live.len() as u64,
            tasks: live.iter().map(|row| number(&row["tasks"])).sum(),
            subscriptions: number(&feeds["news"]) + number(&feeds["weather"]),
            totals: board["totals"].clone(),
            rows: format!("{live:?}"),
        })
    }

    /// The sizes at rest: when the descriptors are down to those before, or do not change any more.
    pub(crate) async fn sizes(&mut self, before: Option<&Sizes>) -> io::Result<Sizes> {
        let (mut descriptors, mut since) = (self.descriptors()?, Instant::now());
        let is_back = |now| before.is_some_and(|before| now <= before.descriptors);
        while !is_back(descriptors) && since.elapsed() < REST {
            sleep(Duration::from_millis(100)).await;
            let now = self.descriptors()?;
            if now != descriptors {
                (descriptors, since) = (now, Instant::now());
            }
        }
        self.stdin.write_all(b"heap?\n").await?;
        let heap = self.line("heap: ").await?;
        Ok(Sizes {
            descriptors,
            threads: self.status("Threads:")?,
            heap: heap.parse().map_err(io::Error::other)?,
            resident: self.status("VmRSS:")?,
        })
    }

    /// Without those of the database: its pool holds none to two connections, as it likes.
    fn descriptors(&self) -> io::Result<u64> {
        let open = fs::read_dir(self.proc("fd"))?.flatten();
        let targets = open.flat_map(|entry| fs::read_link(entry.path()));
        let own = targets.filter(|target| !target.starts_with(&self.folder));
        Ok(own.count() as u64)
    }

    fn status(&self, name: &str) -> io::Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| io::Error::other(format!("/proc has no {name}")))
    }

    fn proc(&self, what: &str) -> PathBuf {
        let pid = self.child.id().unwrap_or_default();
        PathBuf::from(format!("/proc/{pid}/{what}"))
    }

    /// Presses Ctrl-C, and waits for the end.
    pub(crate) async fn stop(mut self) -> io::Result<End> {
        let pid = self.child.id().unwrap_or_default();
        let kill = format!("kill -INT {pid}");
        Command::new("sh").args(["-c", &kill]).status().await?;
        let drained = timeout(PATIENCE, self.line("drained: ")).await;
        let last_line = drained.unwrap_or_else(|late| Err(late.into()))?;
        drop(self.stdin);
        let status = timeout(PATIENCE, self.child.wait()).await??;
        let stderr = fs::read_to_string(self.folder.join("stderr"))?;
        let panics: Vec<_> = stderr
            .lines()
            .filter(|line| line.contains("panicked at"))
            .collect();
        for panic in panics.iter().take(10) {
            eprintln!("{panic}");
        }
        fs::remove_dir_all(&self.folder)?;
        Ok(End {
            code: status.code(),
            last_line: format!("drained: {last_line}"),
            panics: panics.len(),
        })
    }
}
