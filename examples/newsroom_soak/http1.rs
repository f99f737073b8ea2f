//! Clients over HTTP/1.1: bytes on a socket, so that nothing polite gets in the way.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::{Clients, Random};

/// Longer than the newsroom of the soak lets anybody stall.
const STALL: Duration = Duration::from_millis(2_500);
/// What is read whole in far less.
const WHOLE: Duration = Duration::from_secs(60);

const PATHS: [&str; 6] = [
    "/stream",
    "/stream",
    "/stream",
    "/report",
    "/export.csv",
    "/",
];
const WHOLE_PATHS: [&str; 6] = [
    "/",
    "/report",
    "/report",
    "/metrics",
    "/api/streams",
    "/nowhere",
];

/// One connection, of any kind.
pub(crate) async fn connection(addr: SocketAddr, random: &mut Random, account: &Clients) {
    let result = match random.below(20) {
        0..8 => reads_some(addr, random, account).await,
        8..10 => reads_whole(addr, random, account).await,
        10 => reads_slowly(addr, account).await,
        11..13 => stalls(addr, random, account).await,
        13..15 => half_closes(addr, random, account).await,
        15..17 => pipelines(addr, random, account).await,
        17 => exports(addr, account).await,
        _ => aborts_upload(addr, random, account).await,
    };
    // Resets are what half of them ask for; being turned away is not.
    if let Err(error) = result {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            account.wrong(format!("not connected: {error}"));
        }
    }
}

fn request(path: &str, random: &mut Random) -> String {
    let gzip = random.one_of(&["", "accept-encoding: gzip\r\n"]);
    format!("GET {path} HTTP/1.1\r\nhost: newsroom\r\n{gzip}\r\n")
}

/// Reads for so long, or to the end.
async fn read_for(tcp: &mut TcpStream, time: Duration) {
    let mut buffer = [0; 8192];
    let reading = async { while tcp.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(time, reading).await;
}

fn leave(tcp: TcpStream, random: &mut Random, account: &Clients, by: [&'static str; 2]) {
    let reset = random.below(2) == 1 && tcp.set_zero_linger().is_ok();
    drop(tcp);
    account.left(by[usize::from(reset)]);
}

async fn reads_some(addr: SocketAddr, random: &mut Random, account: &Clients) -> io::Result<()> {
    let mut tcp = TcpStream::connect(addr).await?;
    let path = random.one_of(&PATHS);
    tcp.write_all(request(path, random).as_bytes()).await?;
    read_for(&mut tcp, random.stay()).await;
    leave(tcp, random, account, ["FIN", "RST"]);
    Ok(())
}

/// Several requests at once, the last one a stream.
async fn pipelines(addr: SocketAddr, random: &mut Random, account: &Clients) -> io::Result<()> {
    let mut tcp = TcpStream::connect(addr).await?;
    let mut requests = String::new();
    for _ in 0..random.below(4) {
        let path = random.one_of(&WHOLE_PATHS);
        requests += &request(path, random);
    }
    requests += &request("/stream", random);
    requests += &request("/", random);
    tcp.write_all(requests.as_bytes()).await?;
    read_for(&mut tcp, random.stay()).await;
    leave(tcp, random, account, ["pipeline, FIN", "pipeline, RST"]);
    Ok(())
}

/// Asks for megabytes and reads none of them, for longer than it may.
async fn stalls(addr: SocketAddr, random: &mut Random, account: &Clients) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(8 * 1024)?;
    let mut tcp = socket.connect(addr).await?;
    let requests = "GET /report HTTP/1.1\r\nhost: newsroom\r\n\r\n".repeat(40);
    tcp.write_all(requests.as_bytes()).await?;
    sleep(STALL + random.stay()).await;
    leave(tcp, random, account, ["stall, FIN", "stall, RST"]);
    Ok(())
}

/// To this server a FIN is a client that has gone.
async fn half_closes(addr: SocketAddr, random: &mut Random, account: &Clients) -> io::Result<()> {
    let mut tcp = TcpStream::connect(addr).await?;
    let path = random.one_of(&PATHS);
    tcp.write_all(request(path, random).as_bytes()).await?;
    sleep(random.stay() / 4).await;
    tcp.shutdown().await?;
    read_for(&mut tcp, random.stay()).await;
    leave(tcp, random, account, ["half-close, FIN", "half-close, RST"]);
    Ok(())
}

/// Uploads what nobody wants, and breaks off: within the buffers of the sockets, and beyond.
async fn aborts_upload(addr: SocketAddr, random: &mut Random, account: &Clients) -> io::Result<()> {
    let mut tcp = TcpStream::connect(addr).await?;
    let method = random.one_of(&["GET", "POST"]);
    let length = random.one_of(&[100_000, 8_000_000]);
    let head =
        format!("{method} /stream HTTP/1.1\r\nhost: newsroom\r\ncontent-length: {length}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await?;
    let sent = vec![b'x'; random.below(length) as usize];
    let _ = timeout(random.stay(), tcp.write_all(&sent)).await;
    leave(tcp, random, account, ["upload, FIN", "upload, RST"]);
    Ok(())
}

/// As curl does.
async fn reads_whole(addr: SocketAddr, random: &mut Random, account: &Clients) -> io::Result<()> {
    let path = random.one_of(&WHOLE_PATHS);
    let head = request(path, random).replacen("\r\n", "\r\nconnection: close\r\n", 1);
    let mut tcp = TcpStream::connect(addr).await?;
    tcp.write_all(head.as_bytes()).await?;
    match timeout(WHOLE, read_all(&mut tcp)).await {
        Ok(Ok(bytes)) if is_whole(&bytes) => account.left("whole"),
        Ok(Ok(bytes)) => account.wrong(format!("{path}: cut off after {} bytes", bytes.len())),
        Ok(Err(error)) => account.wrong(format!("{path}: {error}")),
        Err(_late) => account.wrong(format!("{path}: hangs")),
    }
    Ok(())
}

/// One export at a time is written; others wait, and are refused after a while.
async fn exports(addr: SocketAddr, account: &Clients) -> io::Result<()> {
    match timeout(WHOLE, get(addr, "/export.csv")).await {
        Ok(Ok(text)) if !is_whole(text.as_bytes()) => account.wrong("an export cut off".to_owned()),
        Ok(Ok(text)) if text.starts_with("HTTP/1.1 200") => account.left("export"),
        Ok(Ok(_)) => account.left("export refused"),
        Ok(Err(error)) => account.wrong(format!("/export.csv: {error}")),
        Err(_late) => account.wrong("/export.csv: hangs".to_owned()),
    }
    Ok(())
}

/// Slow but steady: to be left alone, although it takes longer than the stall time-out.
async fn reads_slowly(addr: SocketAddr, account: &Clients) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(8 * 1024)?;
    let mut tcp = socket.connect(addr).await?;
    tcp.write_all(b"GET /report HTTP/1.1\r\nhost: newsroom\r\nconnection: close\r\n\r\n")
        .await?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        match tcp.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) => {
                account.wrong(format!("a slow reader: {error}"));
                return Ok(());
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
    match is_whole(&bytes) {
        true => account.left("slow"),
        false => account.wrong(format!("a slow reader: cut off after {}", bytes.len())),
    }
    Ok(())
}

/// More compressed streams at once than there are resident compressors, for a while.
pub(crate) async fn many_at_once(addr: SocketAddr) -> io::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut tcp = TcpStream::connect(addr).await?;
        tcp.write_all(b"GET /stream HTTP/1.1\r\nhost: newsroom\r\naccept-encoding: gzip\r\n\r\n")
            .await?;
        streams.push(tcp);
    }
    for tcp in &mut streams {
        read_for(tcp, Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A whole response, head and all, as it is on the wire.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
    let mut tcp = TcpStream::connect(addr).await?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: newsroom\r\nconnection: close\r\n\r\n");
    tcp.write_all(head.as_bytes()).await?;
    String::from_utf8(read_all(&mut tcp).await?).map_err(io::Error::other)
}

async fn read_all(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tcp.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Whether all that the head promises is there.
fn is_whole(response: &[u8]) -> bool {
    let Some(end) = response.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let (head, body) = (
        String::from_utf8_lossy(&response[..end]),
        &response[end + 4..],
    );
    let mut lines = head.lines().map(str::to_ascii_lowercase);
    match lines.find_map(|line| Some(line.strip_prefix("content-length: ")?.to_owned())) {
        Some(length) => length == body.len().to_string(),
        None => body.ends_with(b"0\r\n\r\n"),
    }
}
