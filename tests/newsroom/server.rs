//! The built example as a process of each test's own, with a database of its own.

use std::{
    env::{self, consts::EXE_SUFFIX},
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};

use crate::client::{Client, Protocol, within};

/// A running newsroom. Killed on drop.
pub(crate) struct Newsroom {
    pub(crate) addr: SocketAddr,
    child: Child,
    stdout: BufReader<ChildStdout>,
    folder: Folder,
}

/// How a newsroom ended after Ctrl-C.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
}

impl Newsroom {
    pub(crate) async fn start() -> Self {
        let exe = executable();
        assert!(
            exe.exists(),
            "{} is missing: `cargo test` builds it, `cargo test --test newsroom` does not; \
             run `cargo build --example newsroom` first",
            exe.display()
        );
        let folder = Folder::new();
        let mut child = Command::new(exe)
            .env("BIND", "127.0.0.1:0")
            .env("DATABASE_URL", folder.database_url())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.stderr()).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let addr = loop {
            let mut line = String::new();
            let read = within(stdout.read_line(&mut line)).await.unwrap();
            assert_ne!(read, 0, "it ended before it listened");
            if let Some(addr) = line.trim_end().strip_prefix("newsroom: http://") {
                break addr.parse().unwrap();
            }
        };
        Self {
            addr,
            child,
            stdout,
            folder,
        }
    }

    pub(crate) async fn client(&self, protocol: Protocol) -> Client {
        Client::connect(self.addr, protocol).await
    }

    pub(crate) fn database_url(&self) -> String {
        self.folder.database_url()
    }

    /// What `/api/streams` says now.
    pub(crate) async fn state(&self) -> State {
        let mut client = self.client(Protocol::Http1).await;
        let body = client.get("/api/streams").await.into_body();
        let bytes = within(body.collect()).await.unwrap().to_bytes();
        State(serde_json::from_slice(&bytes).unwrap())
    }

    /// Waits until `/api/streams` says what is wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&State) -> bool) -> State {
        within(async {
            loop {
                let state = self.state().await;
                if wanted(&state) {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// Presses Ctrl-C, as a terminal does.
    pub(crate) async fn interrupt(&self) {
        let pid = self.child.id().expect("it runs");
        let kill = format!("kill -INT {pid}");
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(within(status).await.unwrap().success());
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(mut self) -> Ended {
        let mut stdout = String::new();
        let read = self.stdout.read_to_string(&mut stdout);
        within(read).await.unwrap();
        let status = within(self.child.wait()).await.unwrap();
        Ended {
            code: status.code(),
            stdout,
        }
    }
}

/// What `/api/streams` says.
pub(crate) struct State(Value);

impl State {
    /// The report that came last.
    pub(crate) fn newest(&self) -> &Value {
        &self.0["ended"][0]
    }

    /// How many connections the news and the weather feed have open.
    pub(crate) fn feeds(&self) -> (u64, u64) {
        let open = |feed| self.0["feeds"][feed].as_u64().unwrap();
        (open("news"), open("weather"))
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap()
    }

    /// The live responses to this path.
    pub(crate) fn live(&self, path: &str) -> Vec<&Value> {
        Self::of(&self.0["live"], path)
    }

    /// The end reports of this path, the latest first.
    pub(crate) fn ended(&self, path: &str) -> Vec<&Value> {
        Self::of(&self.0["ended"], path)
    }

    fn of<'a>(rows: &'a Value, path: &str) -> Vec<&'a Value> {
        let rows = rows.as_array().unwrap().iter();
        rows.filter(|row| row["path"] == path).collect()
    }
}

/// Beside the tests, where cargo puts examples: there is no `CARGO_BIN_EXE_` for them.
fn executable() -> PathBuf {
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join(format!("examples/newsroom{EXE_SUFFIX}"))
}

/// A folder of one test, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("newsroom-{}-{next}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn database_url(&self) -> String {
        format!("sqlite://{}", self.0.join("newsroom.sqlite").display())
    }

    fn stderr(&self) -> PathBuf {
        self.0.join("stderr")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stderr = fs::read_to_string(self.stderr()).unwrap_or_default();
            eprintln!("stderr of the newsroom:\n{stderr}");
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}
