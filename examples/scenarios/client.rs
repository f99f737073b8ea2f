//! Clients that send, and leave in every way.

use std::{
    io::{self, ErrorKind, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use bodyguard::BoxError;
use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::rustls::pki_types::ServerName;

use crate::{
    rows::{Does, Leaves, Row, Sends},
    server::{Io, Server},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
/// A GOAWAY frame: last stream 0, no error.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) struct Client {
    speaks: Speaks,
    /// A second descriptor of the socket, below TLS and HTTP/2.
    beside: std::net::TcpStream,
}

enum Speaks {
    Http1(Box<dyn Io>),
    Http2(Box<Http2>),
}

struct Http2 {
    send: SendRequest<Bytes>,
    connection: JoinSet<()>,
    response: Option<ResponseFuture>,
    upload: Option<SendStream<Bytes>>,
    body: Option<h2::RecvStream>,
}

/// What a client that has left still holds, and when it left.
pub(crate) struct Left {
    pub(crate) at: Instant,
    pub(crate) client: Option<Client>,
}

impl Client {
    pub(crate) async fn connect(server: &Server, row: &Row) -> Result<Self, BoxError> {
        let tcp = TcpStream::connect(server.addr).await?;
        tcp.set_nodelay(true)?;
        if row.leaves == Leaves::Rst {
            tcp.set_zero_linger()?;
        }
        let tcp = tcp.into_std()?;
        let beside = tcp.try_clone()?;
        let tcp = TcpStream::from_std(tcp)?;
        let io: Box<dyn Io> = match &server.connector {
            None => Box::new(tcp),
            Some(tls) => Box::new(tls.connect(ServerName::try_from("localhost")?, tcp).await?),
        };
        let speaks = if row.http2 {
            let mut builder = h2::client::Builder::new();
            if row.does == Does::Floods {
                builder.initial_window_size(0);
            }
            let (send, connection) = builder.handshake(io).await?;
            let mut tasks = JoinSet::new();
            tasks.spawn(async move { drop(connection.await) });
            Speaks::Http2(Box::new(Http2 {
                send: send.ready().await?,
                connection: tasks,
                response: None,
                upload: None,
                body: None,
            }))
        } else {
            Speaks::Http1(io)
        };
        Ok(Self { speaks, beside })
    }

    pub(crate) async fn send(&mut self, sends: Sends) -> Result<(), BoxError> {
        match &mut self.speaks {
            Speaks::Http1(io) => {
                io.write_all(request(sends).as_bytes()).await?;
                io.flush().await?;
            }
            Speaks::Http2(http2) => {
                let uploads = sends == Sends::LargePost;
                let request = Request::builder()
                    .method(if uploads { "POST" } else { "GET" })
                    .uri("http://x/")
                    .body(())?;
                let (response, mut upload) = http2.send.send_request(request, !uploads)?;
                if uploads {
                    // More than the server's windows: the rest waits here.
                    upload.send_data(Bytes::from(vec![b'x'; 8 << 20]), false)?;
                }
                http2.response = Some(response);
                http2.upload = Some(upload);
            }
        }
        Ok(())
    }

    /// Waits for the head, and for the first frame if one is due.
    pub(crate) async fn receives(&mut self, frame: bool) -> Result<(), BoxError> {
        match &mut self.speaks {
            Speaks::Http1(io) => {
                let mut got = Vec::new();
                while frame && !String::from_utf8_lossy(&got).contains("first") {
                    if io.read_buf(&mut got).await? == 0 {
                        return Err("closed before the first frame".into());
                    }
                }
            }
            Speaks::Http2(http2) => {
                let response = http2.response.take().ok_or("no request was sent")?;
                let mut body = response.await?.into_body();
                if frame {
                    body.data().await.ok_or("no first frame")??;
                }
                http2.body = Some(body);
            }
        }
        Ok(())
    }

    /// Sends until nothing more goes out for a while; gives how much went.
    pub(crate) async fn fill(&mut self, at_most: usize) -> Result<usize, BoxError> {
        let chunk = vec![b'x'; 64 * 1024];
        let (mut sent, mut quiet) = (0, 0);
        while quiet < 20 && sent < at_most {
            match self.beside.write(&chunk) {
                Ok(written) => (sent, quiet) = (sent + written, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    quiet += 1;
                    sleep(Duration::from_millis(2)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    pub(crate) async fn leave(mut self, how: Leaves) -> Result<Left, BoxError> {
        let mut at = Instant::now();
        match how {
            Leaves::Stays => {}
            Leaves::ShutdownWrite => self.beside.shutdown(Shutdown::Write)?,
            Leaves::GoAway => self.beside.write_all(&GOAWAY)?,
            Leaves::HalfCloses => match &mut self.speaks {
                Speaks::Http1(io) => io.shutdown().await?,
                Speaks::Http2(_) => return Err("HTTP/2 has no half-close".into()),
            },
            Leaves::RstStream => match &mut self.speaks {
                Speaks::Http2(http2) => {
                    let upload = http2.upload.as_mut().ok_or("no request was sent")?;
                    upload.send_reset(h2::Reason::CANCEL);
                }
                Speaks::Http1(_) => return Err("HTTP/1 has no RST_STREAM".into()),
            },
            Leaves::Fin | Leaves::Rst | Leaves::CloseNotify | Leaves::FinThenWrite => {
                match self.speaks {
                    Speaks::Http1(mut io) if how == Leaves::CloseNotify => io.shutdown().await?,
                    Speaks::Http1(io) => drop(io),
                    Speaks::Http2(mut http2) => http2.connection.shutdown().await,
                }
                if how != Leaves::CloseNotify {
                    at = Instant::now();
                }
                drop(self.beside);
                return Ok(Left { at, client: None });
            }
        }
        let client = Some(self);
        Ok(Left { at, client })
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        if let Speaks::Http1(io) = &mut self.speaks {
            io.read_to_end(&mut all).await?;
        }
        Ok(all)
    }
}

fn request(sends: Sends) -> String {
    let post = |length: usize, sent: usize| {
        let content = "x".repeat(sent);
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{content}")
    };
    match sends {
        Sends::Get => GET.to_owned(),
        Sends::PipelinedGet => [GET, GET].concat(),
        Sends::StrayCrlf => [GET, "\r\n"].concat(),
        Sends::SmallPost => post(100, 100),
        Sends::Post => post(40_000, 40_000),
        Sends::HalfPost => post(40_000, 20_000),
        Sends::HalfSmallPost => post(100, 50),
        Sends::LargePost => post(1 << 30, 0),
    }
}
