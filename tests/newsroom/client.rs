//! A client of hyper's, over a connection that can be cut in every way.

use std::{
    future::Future,
    io::Write,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use flate2::write::GzDecoder;
use http::{Request, Response, header, request};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

#[path = "../support/waits.rs"]
mod waits;
use waits::in_time;

/// Far above anything seen, far below patience.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(crate) async fn within<F: Future>(what: F) -> F::Output {
    let waited = in_time(DEADLINE, what).await;
    waited.expect("nothing happened before the deadline")
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// One connection; dropping it closes the socket, whatever it still carries.
pub(crate) struct Client {
    addr: SocketAddr,
    sender: Sender,
    tasks: Tasks,
}

/// The tasks of a connection: HTTP/2 has its socket in one that it spawns.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap().spawn(task);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.0.lock().unwrap().abort_all();
    }
}

impl Client {
    /// A client whose socket is closed by a FIN.
    pub(crate) async fn connect(addr: SocketAddr, protocol: Protocol) -> Self {
        let tcp = within(TcpStream::connect(addr)).await.unwrap();
        Self::over(tcp, protocol).await
    }

    /// A client whose socket is closed by an RST.
    pub(crate) async fn connect_to_reset(addr: SocketAddr, protocol: Protocol) -> Self {
        let tcp = within(TcpStream::connect(addr)).await.unwrap();
        tcp.set_zero_linger().unwrap();
        Self::over(tcp, protocol).await
    }

    async fn over(tcp: TcpStream, protocol: Protocol) -> Self {
        tcp.set_nodelay(true).unwrap();
        let addr = tcp.peer_addr().unwrap();
        let io = TokioIo::new(tcp);
        let tasks = Tasks::default();
        let sender = match protocol {
            Protocol::Http1 => {
                let (sender, connection) = within(http1::handshake(io)).await.unwrap();
                tasks.execute(async { drop(connection.await) });
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let shake = http2::handshake(tasks.clone(), io);
                let (sender, connection) = within(shake).await.unwrap();
                tasks.execute(async { drop(connection.await) });
                Sender::Http2(sender)
            }
        };
        Self {
            addr,
            sender,
            tasks,
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response<Incoming> {
        self.request(path, "identity").await
    }

    pub(crate) async fn get_gzip(&mut self, path: &str) -> Response<Incoming> {
        let response = self.request(path, "gzip").await;
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        response
    }

    async fn request(&mut self, path: &str, accept: &str) -> Response<Incoming> {
        let request = Request::get(path).header(header::ACCEPT_ENCODING, accept);
        self.send(request, "").await
    }

    /// Sends a request for a path; the host is added.
    pub(crate) async fn send(
        &mut self,
        request: request::Builder,
        body: &'static str,
    ) -> Response<Incoming> {
        let addr = self.addr.to_string();
        let request = request.header(header::HOST, &addr);
        let mut request = request.body(Full::from(body)).unwrap();
        let response = match &mut self.sender {
            Sender::Http1(sender) => within(sender.send_request(request)).await,
            Sender::Http2(sender) => {
                *request.uri_mut() = format!("http://{addr}{}", request.uri()).parse().unwrap();
                within(sender.send_request(request)).await
            }
        };
        response.unwrap()
    }
}

/// What a body gave, and whether its end was a clean one.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) text: String,
    pub(crate) end: Result<(), hyper::Error>,
}

/// Reads a body to its end, be it clean or not.
pub(crate) async fn read_all(body: &mut Incoming) -> Read {
    let mut bytes = Vec::new();
    let end = loop {
        match within(body.frame()).await {
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().unwrap()),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    let text = String::from_utf8(bytes).unwrap();
    Read { text, end }
}

/// Reads a body that has to go on until `wanted` says that it has seen enough.
pub(crate) async fn read_until(body: &mut Incoming, wanted: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    while !wanted(&text) {
        let frame = within(body.frame()).await.expect("more").unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    text
}

/// A gzip body, unpacked as far as what has arrived allows.
pub(crate) struct Gunzip {
    body: Incoming,
    decoder: GzDecoder<Vec<u8>>,
}

impl Gunzip {
    pub(crate) fn new(response: Response<Incoming>) -> Self {
        Self {
            body: response.into_body(),
            decoder: GzDecoder::new(Vec::new()),
        }
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(self.decoder.get_ref()).unwrap()
    }

    /// Waits for one more frame; false at a clean end.
    pub(crate) async fn more(&mut self) -> bool {
        let Some(frame) = within(self.body.frame()).await else {
            return false;
        };
        let frame = frame.unwrap();
        self.decoder.write_all(frame.data_ref().unwrap()).unwrap();
        self.decoder.flush().unwrap();
        true
    }

    /// Reads to a clean end with the right checksum.
    pub(crate) async fn finish(mut self) -> String {
        while self.more().await {}
        String::from_utf8(self.decoder.finish().unwrap()).unwrap()
    }
}

/// Serves `app` on loopback for as long as the answer lives.
pub(crate) async fn serve(app: axum::Router) -> (SocketAddr, JoinSet<()>) {
    let listener = bodyguard::net::WatchedListener::bind("127.0.0.1:0").await;
    let listener = listener.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        bodyguard::net::serve(listener, app).await.unwrap();
    });
    (addr, server)
}
