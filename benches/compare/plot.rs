//! A plot of the results, as SVG: heap of an idle stream, and throughput against the peers.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 300.0;
const ROW: f64 = 22.0;

struct Bar {
    label: String,
    value: f64,
    shown: String,
    /// Ours, or a peer's.
    ours: bool,
}

/// Draws what the lines say.
pub(crate) fn svg(lines: &[String], machine: &str) -> String {
    let heap = [
        ("figure heap_plain_10000", "plain, 10,000 streams", true),
        (
            "figure heap_group_10000",
            "task group, 10,000 streams",
            true,
        ),
        ("figure heap_channel", "mpsc and ReceiverStream", false),
        ("figure heap_gzip_1_kib", "gzip, 1 KiB of history", true),
        ("figure heap_gzip_default", "gzip, default", true),
        ("figure heap_gzip_tower_http", "gzip, tower-http", false),
    ];
    let heap = bars(lines, &heap, |bytes| format!("{:.1} KiB", bytes / 1024.0));
    let speed = [
        (
            "ratio requests_vs_bare_axum",
            "hello world vs bare axum",
            true,
        ),
        ("ratio fan_in_64", "fan-in, 64 bytes, vs mpsc", true),
        ("ratio fan_in_256", "fan-in, 256 bytes, vs mpsc", true),
        ("ratio fan_in_4096", "fan-in, 4 KiB, vs mpsc", true),
        ("ratio fan_in_16384", "fan-in, 16 KiB, vs mpsc", true),
        (
            "ratio gzip_prose_65536_vs_tower_http_default",
            "gzip, prose, vs tower-http",
            true,
        ),
        (
            "ratio gzip_json_65536_vs_tower_http_default",
            "gzip, JSON, vs tower-http",
            true,
        ),
        (
            "ratio gzip_prose_65536_vs_flate2_loop",
            "gzip, prose, vs a flate2 loop",
            true,
        ),
        (
            "ratio gzip_prose_65536_parallel",
            "gzip, two cores vs one",
            true,
        ),
        (
            "ratio bridge_writes_vs_channel",
            "blocking writes vs mpsc",
            true,
        ),
    ];
    let speed = bars(lines, &speed, |ratio| format!("{ratio:.2}×"));
    let height = 120.0 + ROW * (heap.len() + speed.len()) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let y = section(
        &mut svg,
        24.0,
        "Heap of an idle stream (logarithmic)",
        &heap,
        0.1,
        |bytes| (bytes.max(64.0) / 64.0).log2(),
    );
    let y = section(
        &mut svg,
        y + 20.0,
        "Throughput; the peer is 1 (the line)",
        &speed,
        1.0,
        |ratio| ratio,
    );
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{}\" fill=\"#666\">{machine}</text>\n</svg>",
        y + 24.0
    );
    svg
}

/// The rows that were measured.
fn bars(lines: &[String], rows: &[(&str, &str, bool)], show: impl Fn(f64) -> String) -> Vec<Bar> {
    let find = |&(prefix, label, ours): &(&str, &str, bool)| {
        let rest = lines
            .iter()
            .find_map(|line| line.strip_prefix(prefix)?.strip_prefix(' '))?;
        let value: f64 = rest.split(' ').next()?.parse().ok()?;
        value.is_finite().then(|| Bar {
            label: label.to_owned(),
            value,
            shown: show(value),
            ours,
        })
    };
    rows.iter().filter_map(find).collect()
}

/// Draws one group of bars with a line at `mark`; where the next may begin.
fn section(
    svg: &mut String,
    top: f64,
    title: &str,
    bars: &[Bar],
    mark: f64,
    scale: impl Fn(f64) -> f64,
) -> f64 {
    let most = bars.iter().map(|bar| scale(bar.value)).fold(1.0, f64::max);
    let length = |value: f64| scale(value) / most * (WIDTH - LEFT - 90.0);
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{top}\" font-weight=\"bold\">{title}</text>"
    );
    let mut y = top + 10.0;
    for bar in bars {
        let color = if bar.ours { "#2b6cb0" } else { "#a0aec0" };
        let (text, end) = (y + 14.0, LEFT + length(bar.value));
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"16\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{}</text>",
            LEFT - 8.0,
            bar.label,
            end - LEFT,
            end + 6.0,
            bar.shown,
        );
        y += ROW;
    }
    let x = LEFT + length(mark);
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#c53030\"/>",
        top + 6.0,
        y - 2.0
    );
    y
}
