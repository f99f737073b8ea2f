//! Clients of ordinary requests, each in its style; they check what they get.

use std::net::SocketAddr;

use bodyguard::BoxError;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::ordinary::{Ask, Style};

/// How many requests go out before the first answer is read.
const PIPELINED: usize = 8;
/// How many streams one connection has open at once.
const STREAMS: usize = 16;

pub(crate) async fn run(style: Style, addr: SocketAddr, asks: Vec<Ask>) -> Result<(), BoxError> {
    match style {
        Style::KeepAlive => one_connection(addr, asks.chunks(1)).await,
        Style::Pipelined => one_connection(addr, asks.chunks(PIPELINED)).await,
        Style::ConnectionClose => {
            for ask in &asks {
                let mut wire = Wire::connect(addr).await?;
                wire.send(&[text(ask, true)]).await?;
                wire.receive(ask).await?;
                wire.end().await?;
            }
            Ok(())
        }
        Style::Http2 => http2(addr, asks).await,
        Style::HalfClose => {
            // One to four requests a connection; every other client also says that it is the last.
            let mut rest = asks.as_slice();
            let mut turn = 0;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(turn % 4 + 1));
                let last = now.len() - 1;
                let says_close = turn % 2 == 0;
                let texts = now.iter().enumerate();
                let texts: Vec<_> = texts
                    .map(|(number, ask)| text(ask, says_close && number == last))
                    .collect();
                let mut wire = Wire::connect(addr).await?;
                wire.send(&texts).await?;
                wire.tcp.shutdown().await?;
                for ask in now {
                    wire.receive(ask).await?;
                }
                wire.end().await?;
                (rest, turn) = (later, turn + 1);
            }
            Ok(())
        }
    }
}

async fn one_connection<'a>(
    addr: SocketAddr,
    batches: impl Iterator<Item = &'a [Ask]>,
) -> Result<(), BoxError> {
    let mut wire = Wire::connect(addr).await?;
    for batch in batches {
        let texts: Vec<_> = batch.iter().map(|ask| text(ask, false)).collect();
        wire.send(&texts).await?;
        for ask in batch {
            wire.receive(ask).await?;
        }
    }
    Ok(())
}

fn text(ask: &Ask, close: bool) -> String {
    let Ask {
        method,
        target,
        upload,
        ..
    } = ask;
    let close = if close { "connection: close\r\n" } else { "" };
    let length = match upload.len() {
        0 => String::new(),
        length => format!("content-length: {length}\r\n"),
    };
    format!("{method} {target} HTTP/1.1\r\nhost: x\r\n{close}{length}\r\n{upload}")
}

/// A connection over HTTP/1.1, and what was read ahead.
struct Wire {
    tcp: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    async fn connect(addr: SocketAddr) -> Result<Self, BoxError> {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        Ok(Self {
            tcp,
            ahead: Vec::new(),
        })
    }

    async fn send(&mut self, texts: &[String]) -> Result<(), BoxError> {
        Ok(self.tcp.write_all(texts.concat().as_bytes()).await?)
    }

    /// Reads one whole response.
    async fn receive(&mut self, ask: &Ask) -> Result<(), BoxError> {
        let head = self.take_until(b"\r\n\r\n").await?.to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).unwrap_or_default().parse()?;
        let bodiless = ask.method == Method::HEAD || matches!(status, 204 | 304);
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut got = 0;
        if bodiless {
        } else if let Some(length) = length {
            got = length.parse()?;
            self.skip(got).await?;
        } else {
            loop {
                let line = self.take_until(b"\r\n").await?;
                let chunk = usize::from_str_radix(line.trim(), 16)?;
                self.skip(chunk + 2).await?;
                got += chunk;
                if chunk == 0 {
                    break;
                }
            }
        }
        check(ask, status, got)
    }

    /// The server closes; nothing is left over.
    async fn end(&mut self) -> Result<(), BoxError> {
        let more = self.tcp.read_to_end(&mut self.ahead).await?;
        match (more, self.ahead.len()) {
            (0, 0) => Ok(()),
            _ => Err("bytes behind the last response".into()),
        }
    }

    async fn take_until(&mut self, end: &[u8]) -> Result<String, BoxError> {
        loop {
            let found = self.ahead.windows(end.len()).position(|at| at == end);
            if let Some(at) = found {
                let rest = self.ahead.split_off(at + end.len());
                let taken = std::mem::replace(&mut self.ahead, rest);
                return Ok(String::from_utf8(taken)?);
            }
            self.more().await?;
        }
    }

    async fn skip(&mut self, length: usize) -> Result<(), BoxError> {
        while self.ahead.len() < length {
            self.more().await?;
        }
        self.ahead.drain(..length);
        Ok(())
    }

    async fn more(&mut self) -> Result<(), BoxError> {
        match self.tcp.read_buf(&mut self.ahead).await? {
            0 => Err("closed within a response".into()),
            _ => Ok(()),
        }
    }
}

fn check(ask: &Ask, status: u16, length: usize) -> Result<(), BoxError> {
    if (status, length) == (ask.status, ask.length) {
        return Ok(());
    }
    Err(format!("{status} with {length} bytes for {ask:?}").into())
}

async fn http2(addr: SocketAddr, asks: Vec<Ask>) -> Result<(), BoxError> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let (send, connection) = h2::client::handshake(tcp).await?;
    let mut connections = JoinSet::new();
    connections.spawn(async move { drop(connection.await) });
    stream::iter(asks)
        .map(Ok)
        .try_for_each_concurrent(STREAMS, |ask| one_stream(send.clone(), ask))
        .await
}

async fn one_stream(send: SendRequest<Bytes>, ask: Ask) -> Result<(), BoxError> {
    let mut send = send.ready().await?;
    let request = Request::builder()
        .method(ask.method.clone())
        .uri(format!("http://x{}", ask.target))
        .body(())?;
    let (response, mut upload) = send.send_request(request, ask.upload.is_empty())?;
    if !ask.upload.is_empty() {
        upload.send_data(ask.upload.into(), true)?;
    }
    let response = response.await?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    check(&ask, status, length)
}
