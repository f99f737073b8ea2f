//! The end of a connection whose client is out of reach: neither FIN nor RST will come.
//!
//! Set on the listening socket, from which accepted ones have it: nothing per connection.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpListener;

/// The silence before the first probe, unless [`tcp_keepalive`](super::WatchedListener::tcp_keepalive) says
/// otherwise.
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// How many probes go without an answer.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PROBES: u32 = 5;

/// Turns probes on unless whoever made the socket has done so.
pub(super) fn set_default(tcp: &TcpListener) {
    if let Ok(false) = SockRef::from(tcp).keepalive() {
        set(tcp, Some(IDLE));
    }
}

/// Fails on nothing that is a TCP socket; without probes a connection is as it would be elsewhere.
pub(super) fn set(tcp: &TcpListener, idle: Option<Duration>) {
    let socket = SockRef::from(tcp);
    let _ = match idle {
        Some(idle) => socket.set_tcp_keepalive(&probes(idle)),
        None => socket.set_keepalive(false),
    };
}

fn probes(idle: Duration) -> TcpKeepalive {
    // The system counts in seconds, and takes no more than some hours.
    let seconds = |duration: Duration| Duration::from_secs(duration.as_secs().clamp(1, 32_767));
    let probes = TcpKeepalive::new().with_time(seconds(idle));
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let probes = probes
        .with_interval(seconds(idle / PROBES))
        .with_retries(PROBES);
    probes
}

/// Only Linux has it.
pub(super) fn set_user_timeout(tcp: &TcpListener, limit: Option<Duration>) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Zero is the system's own, which is none.
        let limit = limit.map(|limit| limit.clamp(Duration::from_millis(1), MOST));
        let _ = SockRef::from(tcp).set_tcp_user_timeout(limit);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (tcp, limit);
}

/// The system counts milliseconds in 31 bits.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MOST: Duration = Duration::from_millis(i32::MAX as u64);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpStream;

    use super::{super::WatchedListener, *};

    /// Keep-alive, its seconds, and the user time-out of what `listener` accepts.
    async fn accepted(listener: WatchedListener) -> (bool, [u64; 2], u32, Option<Duration>) {
        let addr = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.tcp.accept());
        let (socket, _) = accepted.unwrap();
        drop(client);
        let socket = SockRef::from(&socket);
        let times = [socket.tcp_keepalive_time(), socket.tcp_keepalive_interval()];
        (
            socket.keepalive().unwrap(),
            times.map(|time| time.unwrap().as_secs()),
            socket.tcp_keepalive_retries().unwrap(),
            socket.tcp_user_timeout().unwrap(),
        )
    }

    #[tokio::test]
    async fn accepted_connections_have_what_the_listener_was_told() {
        let bind = || async { WatchedListener::bind("127.0.0.1:0").await.unwrap() };
        let minute = (true, [60, 12], 5, None);
        assert_eq!(accepted(bind().await).await, minute);
        let off = bind().await.tcp_keepalive(None);
        assert!(!accepted(off).await.0);
        let ten = bind().await.tcp_keepalive(Duration::from_secs(10));
        assert_eq!(accepted(ten).await, (true, [10, 2], 5, None));
        for odd in [Duration::ZERO, Duration::MAX] {
            let (on, [time, _], ..) = accepted(bind().await.tcp_keepalive(odd)).await;
            assert!(on && (time == 1 || time == 32_767), "{time}");
            let limit = accepted(bind().await.tcp_user_timeout(odd)).await.3;
            assert!(limit.is_some(), "{odd:?}");
        }
        let limit = Duration::from_secs(90);
        let limited = bind().await.tcp_user_timeout(limit);
        assert_eq!(accepted(limited).await, (true, [60, 12], 5, Some(limit)));
    }

    #[tokio::test]
    async fn a_socket_that_was_set_up_is_left_as_it_is() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = TcpKeepalive::new().with_time(Duration::from_secs(7));
        SockRef::from(&tcp).set_tcp_keepalive(&own).unwrap();
        let (on, [time, _], ..) = accepted(tcp.into()).await;
        assert_eq!((on, time), (true, 7));
    }
}
