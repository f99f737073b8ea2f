//! Every row of the cost table, ours and theirs alternating in one run.
//!
//! `cargo bench --bench compare`; behind `--`: `--quick`, `--only NAME` (a row, or what its name
//! begins with), `--record` (writes `benches/results.txt` and `benches/results.svg`). Heap is
//! counted by a binary of its own, `heap`, which this one builds and runs: counting allocations
//! costs time, and would flatter whoever allocates less.

mod bridge;
mod drops;
mod fan_in;
mod frames;
mod gzip;
mod plot;
mod requests;
mod starve;
#[path = "../support/mod.rs"]
mod support;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use support::{line, lines, option};

/// A part of the table, by the beginning of its rows' names.
type Part = (&'static str, fn());

const PARTS: [Part; 9] = [
    ("requests", requests::run),
    ("frame", frames::run),
    ("fan_in", fan_in::run),
    ("gzip", || gzip::run(false)),
    ("heap", || heap("heap")),
    ("idle", || heap("idle")),
    ("starve", starve::run),
    ("drop", drops::run),
    ("bridge", bridge::run),
];

fn main() {
    if let Some(row) = option("--gzip-close") {
        return gzip::close(&row);
    }
    let only = option("--only").unwrap_or_default();
    let begin = Instant::now();
    match &*only {
        "gzip_levels" => return gzip::run(true),
        "idle_table" => return heap("idle_table"),
        _ => {}
    }
    let chosen = |name: &str| name.starts_with(&*only) || only.starts_with(name);
    for (name, part) in PARTS.into_iter().filter(|(name, _)| chosen(name)) {
        println!("\n{name} ({:.0} s)", begin.elapsed().as_secs_f64());
        part();
    }
    println!("\nall of it ({:.0} s)", begin.elapsed().as_secs_f64());
    let lines = lines();
    let ratios = lines.iter().filter(|line| {
        let mut words = line.split(' ');
        words.next() == Some("ratio") && words.next().is_some_and(|name| name.starts_with(&*only))
    });
    let ratios: Vec<_> = ratios.cloned().collect();
    for ratio in &ratios {
        println!("{ratio}");
    }
    if env::args().any(|argument| argument == "--record") {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        let text = format!("{}\n{}\n", machine(), ratios.join("\n"));
        fs::write(folder.join("results.txt"), text).expect("results");
        fs::write(folder.join("results.svg"), plot::svg(&lines, &machine())).expect("results");
    }
}

/// Runs a part of the benchmark `heap`, and takes over what it says.
fn heap(part: &str) {
    let mut command = support::cargo();
    command
        .args(["bench", "--quiet", "--bench", "heap", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .args(["--", "--only", part])
        .stdout(Stdio::piped());
    if support::quick() {
        command.arg("--quick");
    }
    let mut child = command.spawn().expect("cargo");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    for text in output.lines() {
        let text = text.expect("text");
        match text.split(' ').next() {
            Some("ratio" | "figure" | "stated") => line(text),
            _ => println!("{text}"),
        }
    }
    assert!(child.wait().expect("cargo").success(), "heap failed");
}

/// When and where.
fn machine() -> String {
    let date = Command::new("date").arg("+%F").output();
    let date = date.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let quick = if support::quick() { ", --quick" } else { "" };
    format!("{date}, {cores} cores{quick}")
}
