//! Whenever the inner body is pending all that it gave is decodable, wherever its encoder is and however it has come
//! there.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{sync::mpsc::unbounded_channel, time::timeout};

use super::{
    super::{
        Flush,
        encoder::{CUT, Encoder, MOST_HELD, SLICE},
        negotiation::Coding,
        options::{Core, Options},
    },
    Taken, events, gunzip, gunzip_prefix, layer,
    property::Random,
    stream,
};

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
        let (sender, mut receiver) = unbounded_channel();
        let frames = futures_util::stream::poll_fn(move |cx| {
            let data = receiver.poll_recv(cx);
            data.map(|data| data.map(|data| Ok::<_, std::io::Error>(Frame::data(data))))
        });
        let mut body = pin!(stream(&layer, StreamBody::new(frames)));
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

/// Text of which nothing comes is flushed at some cut, and that may be anywhere in a write.
#[test]
fn nothing_stays_inside_behind_a_flush_that_was_forced() {
    let core = Arc::new(Core::new(Options {
        resident_limit: 0,
        ..Options::default()
    }));
    for first in [0, 1, CUT - 1, CUT, CUT + 1] {
        for before in (0..5).map(|cuts| MOST_HELD - cuts * CUT) {
            for last in [1, CUT - 1, CUT, CUT + 1, 3 * CUT, SLICE - 1, SLICE] {
                let about = format!("{first}, to {before}, {last}");
                let mut encoder = Encoder::for_stream(&core, Coding::Gzip);
                let (mut text, mut wire) = (Vec::new(), Vec::new());
                let mut lengths = vec![first];
                lengths.resize(1 + (before - first) / CUT, CUT);
                lengths.push(last);
                for length in lengths {
                    let piece = vec![b'x'; length];
                    encoder.write(&piece).unwrap();
                    text.extend(piece);
                    if encoder.is_due().unwrap() {
                        wire.extend_from_slice(&encoder.take_output());
                    }
                }
                encoder.flush().unwrap();
                wire.extend_from_slice(&encoder.take_output());
                assert!(gunzip_prefix(&wire) == text, "{about}");
                encoder.rest();
                encoder.write(b"more").unwrap();
                encoder.finish().unwrap();
                wire.extend_from_slice(&encoder.take_output());
                text.extend(b"more");
                assert!(gunzip(&wire) == text, "{about}");
            }
        }
    }
}
