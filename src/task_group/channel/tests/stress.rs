//! Many producers, many frames, real threads: order kept, every byte accounted for.

use super::*;

const PRODUCERS: usize = 64;
const FRAMES: usize = 1_000_000 / PRODUCERS;

/// A small generator of our own, so that a failure can be run again.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Producer (1), length of the padding (2), number (4), padding.
fn message(producer: usize, number: usize, seeded: &mut Seeded) -> Bytes {
    let padding = match seeded.next(1000) {
        0 => seeded.next(20_000),
        1..100 => seeded.next(3000),
        _ => seeded.next(60),
    } as usize;
    let mut data = Vec::with_capacity(7 + padding);
    data.push(producer as u8);
    data.extend((padding as u16).to_be_bytes());
    data.extend((number as u32).to_be_bytes());
    data.resize(7 + padding, producer as u8);
    data.into()
}

async fn produce(sender: FrameSender, producer: usize, seed: u64) -> usize {
    let mut seeded = Seeded(seed);
    let mut bytes = 0;
    for number in 0..FRAMES {
        let data = message(producer, number, &mut seeded);
        bytes += data.len();
        match seeded.next(8) {
            // A send that is interrupted is sent again, and only that one arrives.
            0 => {
                let mut send = sender.send(data.clone());
                if poll(&mut send).is_pending() {
                    drop(send);
                    sender.send(data).await.expect("open");
                }
            }
            1 => match sender.try_send(data) {
                Ok(()) => {}
                Err(full) => sender.send(full.into_bytes()).await.expect("open"),
            },
            2 => {
                tokio::task::yield_now().await;
                sender.send(data).await.expect("open");
            }
            _ => sender.send(data).await.expect("open"),
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_million_frames_of_64_producers_arrive_in_order() {
    let seed = 0x9e37_79b9_7f4a_7c15;
    let (sender, mut receiver) = channel(16 * 1024);
    let mut producers = tokio::task::JoinSet::new();
    for producer in 0..PRODUCERS {
        let sender = sender.clone();
        producers.spawn(produce(sender, producer, seed + producer as u64));
    }
    drop(sender);
    let mut next = [0; PRODUCERS];
    let mut arrived = 0;
    while let Some(frame) = std::future::poll_fn(|cx| receiver.poll_frame(cx)).await {
        let data = frame.into_data().expect("data");
        arrived += data.len();
        // A frame holds whole messages: merging does not cut.
        let mut rest = &data[..];
        while let [producer, p1, p0, n3, n2, n1, n0, tail @ ..] = rest {
            let padding = u16::from_be_bytes([*p1, *p0]) as usize;
            let number = u32::from_be_bytes([*n3, *n2, *n1, *n0]) as usize;
            let (padding, behind) = tail.split_at(padding);
            assert!(padding.iter().all(|byte| byte == producer));
            let next = &mut next[usize::from(*producer)];
            assert_eq!(number, *next, "lost, doubled or out of order");
            *next += 1;
            rest = behind;
        }
        assert!(rest.is_empty(), "a message was cut");
    }
    let sent: usize = producers.join_all().await.into_iter().sum();
    assert_eq!(arrived, sent);
    assert_eq!(next, [FRAMES; PRODUCERS]);
}
