//! `/report`: a report writer that blocks, over the bridge.
//!
//! It knows nothing of async code: it writes to an [`io::Write`], and waits in there while the
//! client (behind gzip) is slow. When the client leaves, its next write fails.

use std::{collections::BTreeMap, io};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bodyguard::Bridge;

const WEATHER: &str = include_str!("data/weather.csv");
const HEADER: &str = "location,date,temp_max,month_mean,departure,precipitation_to_date";

pub(crate) async fn report(bridge: Bridge) -> Response {
    let body = bridge.body_writer(write_report);
    ([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], body).into_response()
}

/// Each day's high against the mean of its month, and the rain of the year so far.
fn write_report(out: &mut dyn io::Write) -> io::Result<()> {
    let days = days()?;
    let mut months: BTreeMap<_, (f64, u32)> = BTreeMap::new();
    for day in &days {
        let (sum, count) = months.entry((day.location, day.month())).or_default();
        *sum += day.temp_max;
        *count += 1;
    }
    let mut rain: BTreeMap<_, f64> = BTreeMap::new();
    writeln!(out, "{HEADER}")?;
    for day in &days {
        let (sum, count) = months[&(day.location, day.month())];
        let mean = sum / f64::from(count);
        let to_date = rain.entry((day.location, day.year())).or_default();
        *to_date += day.precipitation;
        writeln!(
            out,
            "{},{},{:.1},{mean:.1},{:+.1},{to_date:.1}",
            day.location,
            day.date,
            day.temp_max,
            day.temp_max - mean
        )?;
    }
    Ok(())
}

struct Day {
    location: &'static str,
    date: &'static str,
    precipitation: f64,
    temp_max: f64,
}

impl Day {
    fn month(&self) -> &'static str {
        &self.date[..7]
    }

    fn year(&self) -> &'static str {
        &self.date[..4]
    }
}

fn days() -> io::Result<Vec<Day>> {
    let parse = |line: &'static str| {
        let mut fields = line.split(',');
        Some(Day {
            location: fields.next()?,
            date: fields.next().filter(|date| date.len() == 10)?,
            precipitation: fields.next()?.parse().ok()?,
            temp_max: fields.next()?.parse().ok()?,
        })
    };
    let lines = WEATHER.lines().skip(1);
    lines
        .map(|line| parse(line).ok_or_else(|| io::Error::other(format!("weather.csv: {line}"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use axum::{Router, body::Body, http::Request, routing::get};
    use bodyguard::{Stack, bridge::Pool};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn the_report_passes_whole_through_gzip() {
        let pool = Pool::new();
        let app = Router::new()
            .route("/report", get(report))
            .layer(Stack::new().bridge_pool(&pool));
        let request = Request::get("/report")
            .header(header::ACCEPT_ENCODING, "gzip")
            .body(Body::empty())
            .unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        let zipped = response.into_body().collect().await.unwrap().to_bytes();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*zipped)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text.lines().count(), WEATHER.lines().count());
        // The means as awk has them.
        let first = "New York,2012-01-01,10.0,7.0,+3.0,1.8";
        assert_eq!(text.lines().nth(1), Some(first));
        assert_eq!((pool.threads(), pool.idle()), (1, 1));
    }

    #[tokio::test]
    async fn the_writer_stays_within_the_buffer_of_a_client_that_does_not_read() {
        let pool = Pool::new();
        let app = Router::new()
            .route("/report", get(report))
            .layer(Stack::new().bridge_pool(&pool));
        let request = Request::get("/report").body(Body::empty()).unwrap();
        let mut body = app.oneshot(request).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        // The report is larger than the 64 KiB that may wait: its writer cannot be done.
        assert_eq!(pool.idle(), 0);
        drop(body);
        let limit = std::time::Duration::from_secs(10);
        let back = async {
            while pool.idle() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(limit, back).await.unwrap();
    }
}
