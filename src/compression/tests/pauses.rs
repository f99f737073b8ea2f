//! Whenever the inner body is pending all that it gave is decodable, wherever its encoder is and however it has come
//! there.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use super::{super::Flush, Taken, events, gunzip, gunzip_prefix, layer, property::Random, stream};

struct Fed(UnboundedReceiver<Bytes>);

impl Body for Fed {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let next = self.0.poll_recv(cx);
        next.map(|next| next.map(|data| Ok(Frame::data(data))))
    }
}

/// The clock is paused: a time-out is over when nothing is left to be done, on other threads either.
const LONG: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn all_that_was_given_is_decodable() {
    let repeated = vec![b'x'; 2 << 20];
    let various = events(40_000).concat();
    for seed in 0..100 {
        let mut random = Random(seed);
        let text = random.pick(&[&repeated, &various]);
        let layer = layer()
            .parallel(random.below(2) == 0)
            .flush(random.pick(&[Flush::WhenIdle, Flush::WhenIdle, Flush::EveryFrame]))
            .resident_limit(random.pick(&[0, 1, 32]))
            .random_padding(random.pick(&[0, 100]))
            .history(random.pick(&[0, 10, 6 << 10, 32 << 10]))
            .level(1 + random.below(9) as u32);
        let about = format!("seed {seed}, {layer:?}");
        let (sender, body) = unbounded_channel();
        let mut body = pin!(stream(&layer, Fed(body)));
        let mut taken = Taken::default();
        let mut given = 0;
        for _ in 0..4 {
            let most = random.pick(&[30, 3_000, 5_000, 8_192, 20_000, 500_000]);
            let until = given + random.below(500_000);
            while given < until.min(text.len()) {
                // Of one length half of the time: so that cuts and frames end together.
                let len = match seed % 2 {
                    0 => most,
                    _ => 1 + random.below(most),
                };
                let end = text.len().min(given + len);
                sender
                    .send(Bytes::copy_from_slice(&text[given..end]))
                    .unwrap();
                given = end;
            }
            while let Ok(frame) = timeout(LONG, body.frame()).await {
                assert!(taken.take(frame), "{about}: ended");
            }
            assert!(gunzip_prefix(&taken.wire) == text[..given], "{about}");
        }
        drop(sender);
        while taken.take(timeout(LONG, body.frame()).await.expect("an end")) {}
        assert!(gunzip(&taken.wire) == text[..given], "{about}");
    }
}
