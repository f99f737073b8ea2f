//! What the benchmarks share: corpora, clocks, and the lines that goals are judged by.
#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod corpus;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

/// All that has been measured, in order; shown once more at the end.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Fewer and shorter rounds.
pub(crate) fn quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// The value behind `--name`.
pub(crate) fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

pub(crate) fn time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begin = Instant::now();
    let result = work();
    (begin.elapsed(), result)
}

/// Processor time all threads of this process have had; zero where the system does not say.
///
/// On a machine shared with others the wall clock measures the others too.
pub(crate) fn cpu() -> Duration {
    booked();
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .map(|task| thread_cpu(&task.path().join("schedstat")))
        .sum()
}

/// Processor time one thread has had, by its `schedstat`.
pub(crate) fn thread_cpu(schedstat: &Path) -> Duration {
    let line = std::fs::read_to_string(schedstat).unwrap_or_default();
    let nanos = line.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// Processor time of this thread.
pub(crate) fn my_cpu() -> Duration {
    booked();
    thread_cpu("/proc/thread-self/schedstat".as_ref())
}

/// Lets the kernel book this thread's time: between its ticks it does so when the thread stops.
fn booked() {
    std::thread::park_timeout(Duration::from_micros(1));
}

pub(crate) fn median(values: Vec<f64>) -> f64 {
    quantile(&sorted(values), 2)
}

/// The line a goal is judged by: the median of the rounds is at least `goal`.
pub(crate) fn at_least(name: &str, rounds: Vec<f64>, goal: f64) {
    verdict(name, rounds, goal, |value| value >= goal);
}

/// The line a goal is judged by: the median of the rounds is at most `goal`.
pub(crate) fn at_most(name: &str, rounds: Vec<f64>, goal: f64) {
    verdict(name, rounds, goal, |value| value <= goal);
}

/// A ratio without a goal, there to be known.
pub(crate) fn stated(name: &str, value: f64) {
    line(format!("stated {name} {value:.3}"));
}

/// A figure for the plot.
pub(crate) fn figure(name: &str, value: f64) {
    line(format!("figure {name} {value:.1}"));
}

/// Builds the small package of this name, with features of its own; the path of its binary.
pub(crate) fn build(name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("benches")
        .join(name);
    let target = package.join("target");
    let status = cargo()
        .args(["build", "--release", "--quiet", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo");
    assert!(status.success(), "{name} does not build");
    target.join("release").join(name)
}

/// Cargo as if called from a shell: what this run was told of its own package would have build
/// scripts run again, and all that stands on them built again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    let told = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if told.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Takes a line into the account.
pub(crate) fn line(line: String) {
    println!("{line}");
    LINES.lock().expect("one thread").push(line);
}

/// The account.
pub(crate) fn lines() -> Vec<String> {
    LINES.lock().expect("one thread").clone()
}

fn verdict(name: &str, rounds: Vec<f64>, goal: f64, good: impl Fn(f64) -> bool) {
    let rounds = sorted(rounds);
    let value = quantile(&rounds, 2);
    let (low, high) = bounds(&rounds);
    let mut text = format!(
        "ratio {name} {value:.3} goal {goal} {}",
        if good(value) { "ok" } else { "short" }
    );
    if rounds.len() > 1 {
        text += &format!(" ({} rounds: {low:.3} to {high:.3}", rounds.len());
        text += match good(low) == good(high) {
            true => ")",
            false => "; too noisy to judge: the goal lies within)",
        };
    }
    line(text);
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Where the median of endless rounds would be, with a probability of about 95 %: by the order of
/// these, whatever their distribution.
fn bounds(sorted: &[f64]) -> (f64, f64) {
    let rounds = sorted.len() as f64;
    let outside = ((rounds - 2.0 * rounds.sqrt()) / 2.0).max(0.0) as usize;
    (sorted[outside], sorted[sorted.len() - 1 - outside])
}

fn quantile(sorted: &[f64], quarter: usize) -> f64 {
    sorted[(sorted.len() - 1) * quarter / 4]
}
