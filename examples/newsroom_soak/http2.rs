//! Clients over HTTP/2: several streams on a connection, each with a mind of its own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{Clients, Random};

const STREAMS: u64 = 6;
const STALL: Duration = Duration::from_millis(2_500);
const PATHS: [&str; 5] = ["/stream", "/stream", "/report", "/export.csv", "/"];

/// One connection with its streams; it goes with them, or before them.
pub(crate) async fn connection(addr: SocketAddr, random: &mut Random, account: &Arc<Clients>) {
    let tcp = match TcpStream::connect(addr).await {
        Ok(tcp) => tcp,
        Err(error) => return account.wrong(format!("not connected: {error}")),
    };
    let resets = random.below(2) == 0 && tcp.set_zero_linger().is_ok();
    let Ok((send, connection)) = h2::client::handshake(tcp).await else {
        return account.wrong("no HTTP/2 handshake".to_owned());
    };
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let (random, account) = (Random(random.below(u64::MAX)), account.clone());
        streams.spawn(stream(send.clone(), random, account));
    }
    drop(send);
    // Whole, it ends by itself; else it is gone with all its streams.
    let whole = random.below(3) == 0;
    let time = if whole { STALL * 8 } else { random.stay() * 2 };
    let ended = timeout(time, connection).await.is_ok();
    account.left(match (ended, resets) {
        (true, _) => "connection over",
        (false, true) => "connection RST",
        (false, false) => "connection FIN",
    });
    if whole && !ended {
        account.wrong("an HTTP/2 connection hangs".to_owned());
    }
    streams.shutdown().await;
}

/// Errors are the connection's going, which is as random as the rest.
async fn stream(
    send: SendRequest<Bytes>,
    mut random: Random,
    account: Arc<Clients>,
) -> Result<(), h2::Error> {
    sleep(random.stay() / 8).await;
    let mut send = send.ready().await?;
    let path = random.one_of(&PATHS);
    let uploads = random.below(6) == 0;
    let uri = format!("http://newsroom{path}");
    let request = http::Request::builder().uri(uri).body(());
    let (response, mut upload) = send.send_request(request.expect("a request"), !uploads)?;
    drop(send);
    if uploads {
        upload.send_data(Bytes::from(vec![b'x'; 200_000]), false)?;
    }
    let stalls = random.below(4) == 0;
    let reading = async {
        let body = response.await?.into_body();
        if stalls {
            sleep(STALL).await;
            drop(body);
            return Ok(());
        }
        read(body).await
    };
    match timeout(
        random
            .stay()
            .max(if stalls { STALL } else { Duration::ZERO }),
        reading,
    )
    .await
    {
        Ok(Ok(())) if stalls => account.left("stream stall"),
        Ok(Ok(())) => account.left("stream read"),
        Ok(Err(error)) => return Err(error),
        Err(_enough) => account.left(if uploads {
            "upload RST_STREAM"
        } else {
            "RST_STREAM"
        }),
    }
    upload.send_reset(Reason::CANCEL);
    Ok(())
}

async fn read(mut body: RecvStream) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(())
}
