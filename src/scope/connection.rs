//! The connection a request came on: its upload, whether its client has gone, and the wait for that.
//!
//! Of the connection itself, without the `net` feature, or a listener that watches, nothing is known and nothing is waited for.

use std::{sync::Arc, task::Context};

use http::{Extensions, Version};

#[cfg(feature = "net")]
use std::future::Future;

#[cfg(feature = "net")]
use super::failure::contained;
use super::upload::Upload;
#[cfg(feature = "net")]
use crate::net::{Gone, Peer, PeerEnd};
use crate::supervisor::Supervisor;

/// How long a request has to be pending before its connection is watched: most are done sooner.
#[cfg(feature = "net")]
const ARM_AFTER: std::time::Duration = std::time::Duration::from_millis(20);

/// What is known of a request's connection. Keeps nothing open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connection {
    #[cfg(feature = "net")]
    peer: Option<Peer>,
    upload: Option<Arc<Upload>>,
}

impl Connection {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        Self {
            #[cfg(feature = "net")]
            peer: Peer::from_extensions(extensions).cloned(),
            upload: extensions.get().cloned(),
        }
    }

    /// The supervisor that its server drains.
    pub(super) fn supervisor(&self) -> Option<&Supervisor> {
        #[cfg(feature = "net")]
        return self.peer.as_ref().and_then(Peer::supervisor);
        #[cfg(not(feature = "net"))]
        None
    }

    /// The request body, if its layer watches it.
    pub(super) fn upload(&self) -> Option<&Upload> {
        self.upload.as_deref()
    }

    /// The response is over: what is left of the request is the server's affair.
    pub(super) fn close_upload(&self) {
        if let Some(upload) = self.upload() {
            upload.close();
        }
    }

    /// The client broke its request off.
    pub(super) fn has_aborted(&self) -> bool {
        self.upload().is_some_and(Upload::is_aborted)
    }

    /// The client is known to have gone.
    pub(super) fn has_left(&self) -> bool {
        self.is_gone() || self.has_aborted()
    }
}

/// The wait for a connection's end, armed at the first poll.
#[derive(Debug, Default)]
pub(super) struct Watch {
    #[cfg(feature = "net")]
    armed: bool,
    // Boxed: most requests are answered before they are ever pending.
    #[cfg(feature = "net")]
    gone: Option<Box<Gone>>,
}

#[cfg(feature = "net")]
impl Connection {
    /// Whether the client is known to have gone. Our own closing says nothing about the client.
    pub(super) fn is_gone(&self) -> bool {
        let end = self.peer.as_ref().and_then(Peer::end);
        matches!(end, Some(PeerEnd::Fin | PeerEnd::Rst))
    }

    /// Whether no client leaves without that being known: on HTTP/2 its connection stays, a FIN may be
    /// its right, and TLS has an end of its own.
    pub(super) fn tells_leaves(&self, version: Version) -> bool {
        let watched = |peer: &Peer| peer.is_bare() && !peer.half_close();
        self.peer.as_ref().is_some_and(watched) && version < Version::HTTP_2
    }

    /// The write that waits for the client to read, if one does: the next one has another number.
    pub(super) fn held_up(&self) -> Option<u32> {
        self.peer.as_ref().and_then(Peer::held_up)
    }

    /// Has the end of the connection be a reset.
    pub(crate) fn end_in_reset(&self) {
        if let Some(peer) = &self.peer {
            peer.end_in_reset();
        }
    }

    /// Closes the connection, so that the server lets go of a response nobody reads.
    pub(super) fn reset(&self) {
        if let Some(peer) = &self.peer {
            peer.reset();
        }
    }
}

#[cfg(feature = "net")]
impl Watch {
    /// True once the client has gone.
    pub(super) fn poll(&mut self, connection: &Connection, cx: &mut Context<'_>) -> bool {
        if !self.armed {
            self.armed = true;
            let peer = connection.peer.as_ref();
            self.gone = peer.map(|peer| Box::new(peer.gone_after(ARM_AFTER)));
        }
        let Some(gone) = &mut self.gone else {
            return false;
        };
        // Timers panic where their runtime is shutting down; nobody needs the watch then.
        match contained(|| std::pin::Pin::new(gone).poll(cx)) {
            Ok(std::task::Poll::Pending) => return false,
            Ok(std::task::Poll::Ready(_)) | Err(_) => self.gone = None,
        }
        connection.is_gone()
    }
}

#[cfg(not(feature = "net"))]
impl Connection {
    pub(super) fn is_gone(&self) -> bool {
        false
    }

    pub(super) fn tells_leaves(&self, _: Version) -> bool {
        false
    }

    pub(super) fn held_up(&self) -> Option<u32> {
        None
    }

    pub(super) fn reset(&self) {}

    pub(crate) fn end_in_reset(&self) {}
}

#[cfg(not(feature = "net"))]
impl Watch {
    pub(super) fn poll(&mut self, _: &Connection, _: &mut Context<'_>) -> bool {
        false
    }
}
