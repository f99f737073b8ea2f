use futures_util::{Stream, StreamExt};
use serde_json::Value;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const FAST: Duration = Duration::from_millis(1);
/// Longer than any test: only what is sent at once arrives.
const NEVER: Duration = Duration::from_secs(3600);

async fn next(
    stream: &mut (impl Stream<Item = Result<String, FeedError>> + Unpin),
) -> Result<String, FeedError> {
    timeout(LIMIT, stream.next())
        .await
        .expect("in time")
        .unwrap_or_else(|| Err("ended".into()))
}

/// Polls until the feeds have this many connections open.
async fn wait_for_open(feeds: &Feeds, wanted: (usize, usize)) {
    let reached = async {
        while feeds.open_connections() != wanted {
            sleep(Duration::from_millis(2)).await;
        }
    };
    if timeout(LIMIT, reached).await.is_err() {
        panic!("{:?} open, wanted {wanted:?}", feeds.open_connections());
    }
}

#[test]
fn a_headline_reads_like_one() {
    assert_eq!(
        headline(4.6, "12km S of Kodiak, Alaska"),
        "M 4.6, 12 km S of Kodiak, Alaska"
    );
    assert_eq!(headline(5.0, "Banda Sea"), "M 5.0, Banda Sea");
}

#[test]
fn the_whole_data_set_is_readable() {
    assert_eq!(bulletins().unwrap().len(), 438);
    assert_eq!(observations().unwrap().len(), 2922);
}

#[tokio::test]
async fn both_feeds_start_with_the_first_item_of_the_data_set() {
    let feeds = Feeds::start_with(NEVER, NEVER).await.unwrap();
    let mut news = subscribe(feeds.news_url()).await.unwrap();
    let mut weather = subscribe(feeds.weather_url()).await.unwrap();

    let bulletin: Value = serde_json::from_str(&next(&mut news).await.unwrap()).unwrap();
    assert_eq!(bulletin["kind"], "news");
    assert_eq!(
        bulletin["headline"],
        "M 5.3, 50 km NNW of Sangiang, Indonesia"
    );
    assert_eq!(bulletin["time"], "2018-01-31T02:00:31Z");

    let observation: Value = serde_json::from_str(&next(&mut weather).await.unwrap()).unwrap();
    assert_eq!(observation["kind"], "weather");
    assert_eq!(observation["station"], "New York");
    assert_eq!(observation["high_c"], 10.0);
}

#[tokio::test]
async fn a_replay_is_in_order_and_starts_again_at_the_end() {
    let items = vec!["a".into(), "b".into(), "c".into()];
    let feed = Feed::start(items, FAST).await.unwrap();
    let mut seen = String::new();
    let mut stream = subscribe(feed.url()).await.unwrap();
    for _ in 0..9 {
        seen += &next(&mut stream).await.unwrap();
    }
    assert!("abcabcabcabc".contains(&seen), "{seen}");
}

#[tokio::test]
async fn a_connection_counts_until_its_client_has_left() {
    let feeds = Feeds::start_with(FAST, NEVER).await.unwrap();
    assert_eq!(feeds.open_connections(), (0, 0));
    let mut news = subscribe(feeds.news_url()).await.unwrap();
    let second = subscribe(feeds.news_url()).await.unwrap();
    let weather = subscribe(feeds.weather_url()).await.unwrap();
    assert_eq!(feeds.open_connections(), (2, 1));

    drop(second);
    wait_for_open(&feeds, (1, 1)).await;
    // A feed that has nothing to send sees its client leave as well.
    drop(weather);
    wait_for_open(&feeds, (1, 0)).await;
    next(&mut news)
        .await
        .expect("the first subscriber is untouched");
    drop(news);
    wait_for_open(&feeds, (0, 0)).await;
}

#[tokio::test]
async fn dropping_the_feeds_cuts_their_connections() {
    let feeds = Feeds::start_with(NEVER, NEVER).await.unwrap();
    let mut news = subscribe(feeds.news_url()).await.unwrap();
    next(&mut news).await.unwrap();
    drop(feeds);
    next(&mut news).await.expect_err("nothing more is sent");
}
