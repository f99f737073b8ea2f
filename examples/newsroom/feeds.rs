//! Two real WebSocket feeds on loopback, replaying the data set: what `/stream` merges.
//!
//! They stand in for the remote services a newsroom would subscribe to, and they count their open connections, so
//! that it can be seen from outside that a stream which ended has let go of both.

use std::error::Error;
use std::future::ready;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{accept_async, connect_async_with_config};

const EARTHQUAKES: &str = include_str!("data/earthquakes.jsonl");
const WEATHER: &str = include_str!("data/weather.csv");

const NEWS_EVERY: Duration = Duration::from_millis(900);
const WEATHER_EVERY: Duration = Duration::from_millis(400);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// What a subscription can fail with.
pub(crate) type FeedError = Box<dyn Error + Send + Sync>;

/// The two feed servers.
///
/// On drop both stop listening and their connections are cut, which subscribers see as an error: drain the
/// server that reads from them first.
#[derive(Debug)]
pub(crate) struct Feeds {
    news: Feed,
    weather: Feed,
}

impl Feeds {
    /// Starts both feeds on ports of the system's choice: news every 900 ms, weather every 400 ms.
    pub(crate) async fn start() -> io::Result<Self> {
        Self::start_with(NEWS_EVERY, WEATHER_EVERY).await
    }

    /// Starts both feeds with these intervals, which must not be zero.
    pub(crate) async fn start_with(news: Duration, weather: Duration) -> io::Result<Self> {
        Ok(Self {
            news: Feed::start(bulletins()?, news).await?,
            weather: Feed::start(observations()?, weather).await?,
        })
    }

    /// Where the news are: `ws://127.0.0.1:…`.
    pub(crate) fn news_url(&self) -> String {
        self.news.url()
    }

    /// Where the weather is: `ws://127.0.0.1:…`.
    pub(crate) fn weather_url(&self) -> String {
        self.weather.url()
    }

    /// How many connections the news and the weather server have open now.
    pub(crate) fn open_connections(&self) -> (usize, usize) {
        (self.news.open(), self.weather.open())
    }
}

/// Subscribes to a feed; every item is one JSON text.
///
/// The stream ends when the feed closes the connection and yields an error when the connection breaks. Dropping it
/// closes the connection.
pub(crate) async fn subscribe(
    url: String,
) -> Result<impl Stream<Item = Result<String, FeedError>> + Send + Unpin, FeedError> {
    let no_delay = true;
    let (socket, _head) = connect_async_with_config(url, None, no_delay).await?;
    Ok(socket.filter_map(|message| {
        ready(match message {
            Ok(Message::Text(text)) => Some(Ok(text.as_str().to_owned())),
            Ok(_control) => None,
            Err(err) => Some(Err(err.into())),
        })
    }))
}

/// One WebSocket server that replays `items` for ever.
#[derive(Debug)]
struct Feed {
    addr: SocketAddr,
    open: Arc<AtomicUsize>,
    /// The accept loop, which owns the connections in a set of its own: dropping this one stops everything.
    _tasks: JoinSet<()>,
}

impl Feed {
    async fn start(items: Vec<Utf8Bytes>, every: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let open = Arc::new(AtomicUsize::new(0));
        let replay = Replay {
            items: items.into(),
            every,
            started: Instant::now(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, replay, open.clone()));
        Ok(Self {
            addr,
            open,
            _tasks: tasks,
        })
    }

    fn url(&self) -> String {
        format!("ws://{}", self.addr)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

async fn accept(listener: TcpListener, replay: Replay, open: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _peer)) => {
                    // Counted before the handshake: whoever has subscribed is in the count already.
                    let counted = Counted::new(&open);
                    let replay = replay.clone();
                    connections.spawn(async move {
                        let _counted = counted;
                        replay.serve(socket).await;
                    });
                }
                // Out of descriptors, most likely: wait for some to come back.
                Err(_) => sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

/// One open connection in the count.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The items and the clock that says which one is due; all subscribers see the same "now".
#[derive(Clone)]
struct Replay {
    items: Arc<[Utf8Bytes]>,
    every: Duration,
    started: Instant,
}

impl Replay {
    /// Sends the item due now, then one more each interval, until the client is gone.
    async fn serve(&self, socket: TcpStream) {
        if socket.set_nodelay(true).is_err() {
            return;
        }
        let Ok(Ok(mut socket)) = timeout(HANDSHAKE_LIMIT, accept_async(socket)).await else {
            return;
        };
        let due = self.started.elapsed().as_nanos() / self.every.as_nanos();
        let due = usize::try_from(due % self.items.len() as u128).unwrap_or_default();
        let mut items = self.items.iter().cycle().skip(due);
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                // Reading is how a close, a FIN or an RST of the client is seen; it also answers pings.
                incoming = socket.next() => if !matches!(incoming, Some(Ok(_))) { return },
                _ = ticks.tick() => {
                    let Some(item) = items.next() else { return };
                    if socket.send(Message::Text(item.clone())).await.is_err() { return }
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Earthquake {
    id: String,
    time: String,
    mag: f64,
    place: String,
    depth_km: f64,
    lat: f64,
    lon: f64,
    tsunami: bool,
}

#[derive(Serialize)]
struct Bulletin<'a> {
    kind: &'static str,
    id: &'a str,
    time: &'a str,
    headline: String,
    magnitude: f64,
    depth_km: f64,
    lat: f64,
    lon: f64,
    tsunami: bool,
}

#[derive(Serialize)]
struct Observation<'a> {
    kind: &'static str,
    station: &'a str,
    date: &'a str,
    sky: &'a str,
    high_c: f64,
    low_c: f64,
    rain_mm: f64,
    wind_ms: f64,
}

/// The earthquakes of a week as news items, in the order they happened.
fn bulletins() -> io::Result<Vec<Utf8Bytes>> {
    let lines = EARTHQUAKES.lines();
    lines
        .map(|line| {
            let quake: Earthquake = serde_json::from_str(line)?;
            let bulletin = Bulletin {
                kind: "news",
                headline: headline(quake.mag, &quake.place),
                id: &quake.id,
                time: &quake.time,
                magnitude: quake.mag,
                depth_km: quake.depth_km,
                lat: quake.lat,
                lon: quake.lon,
                tsunami: quake.tsunami,
            };
            Ok(serde_json::to_string(&bulletin)?.into())
        })
        .collect()
}

/// `M 4.6, 12 km S of Kodiak, Alaska`, or the region's name alone at sea.
fn headline(magnitude: f64, place: &str) -> String {
    let digits = place.bytes().take_while(u8::is_ascii_digit).count();
    match place.split_at(digits) {
        (km, rest) if digits > 0 && rest.starts_with("km ") => {
            format!("M {magnitude:.1}, {km} {rest}")
        }
        _ => format!("M {magnitude:.1}, {place}"),
    }
}

/// The daily weather, both cities of a day one after the other.
fn observations() -> io::Result<Vec<Utf8Bytes>> {
    let lines = WEATHER.lines().skip(1);
    lines
        .map(|line| {
            let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("weather.csv: {line}"));
            let number = |text: &str| text.parse::<f64>().map_err(|_| bad());
            let columns: Vec<&str> = line.split(',').collect();
            let [station, date, rain, high, low, wind, sky] = columns[..] else {
                return Err(bad());
            };
            let observation = Observation {
                kind: "weather",
                station,
                date,
                sky,
                high_c: number(high)?,
                low_c: number(low)?,
                rain_mm: number(rain)?,
                wind_ms: number(wind)?,
            };
            Ok(serde_json::to_string(&observation)?.into())
        })
        .collect()
}

#[cfg(test)]
mod tests;
