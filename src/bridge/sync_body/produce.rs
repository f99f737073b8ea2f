//! The producer's side: iterators and writers on the request's thread.

use std::{convert::Infallible, future::poll_fn, io, panic::Location, task::Poll};

use bytes::Bytes;

use super::{BUFFER, SyncBody};
use crate::{
    BoxError,
    bridge::{
        bound::Bound,
        cx::Cx,
        error::{BridgeError, BridgeErrorKind},
        handle::Bridge,
        pipe::{Pipe, Refused},
    },
};

impl Bridge {
    /// A body from the chunks of an iterator, on the request's thread.
    ///
    /// See [`SyncBody`].
    #[track_caller]
    pub fn body_from_iter<I>(&self, iter: I) -> SyncBody
    where
        I: IntoIterator + Send + 'static,
        I::Item: Into<Bytes>,
    {
        SyncBody::of_chunks(self, Location::caller(), |_| whole(iter))
    }

    /// A body from the chunks of an iterator that is made on the request's thread.
    ///
    /// The iterator need not be `Send`: it may hold what [`Cx::insert`] keeps.
    #[track_caller]
    pub fn body_from_iter_with<F, I>(&self, make: F) -> SyncBody
    where
        F: FnOnce(&Cx) -> I + Send + 'static,
        I: IntoIterator,
        I::Item: Into<Bytes>,
    {
        SyncBody::of_chunks(self, Location::caller(), |cx| whole(make(cx)))
    }

    /// A body from the chunks of a fallible iterator, on the request's thread.
    ///
    /// Its first error is the body's.
    #[track_caller]
    pub fn body_try_from_iter<I, D, E>(&self, iter: I) -> SyncBody
    where
        I: IntoIterator<Item = Result<D, E>> + Send + 'static,
        D: Into<Bytes>,
        E: Into<BoxError>,
    {
        SyncBody::of_chunks(self, Location::caller(), |_| iter)
    }

    /// A body from what a closure writes, on the request's thread.
    ///
    /// See [`SyncBody`]. Inside, [`Cx::with_current`] gives the request's loop.
    #[track_caller]
    pub fn body_writer<F>(&self, write: F) -> SyncBody
    where
        F: FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    {
        SyncBody::of_writes(self, Location::caller(), write)
    }

    /// The same of a closure that is given the request's [`Cx`], and may fail with any error.
    ///
    /// ```
    /// use std::io::Write;
    /// use bodyguard::{BoxError, bridge::{Bridge, Cx, SyncBody}};
    ///
    /// /// A driver of the thread's own, put there by middleware or an earlier call.
    /// struct Rows(Vec<&'static str>);
    ///
    /// fn export(bridge: Bridge) -> SyncBody {
    ///     bridge.body_writer_with(|cx, out| {
    ///         let rows = cx.get::<Rows>().ok_or("no rows here")?;
    ///         for row in &rows.0 {
    ///             writeln!(out, "{row}")?;
    ///         }
    ///         Ok::<_, BoxError>(())
    ///     })
    /// }
    /// ```
    #[track_caller]
    pub fn body_writer_with<F, E>(&self, write: F) -> SyncBody
    where
        F: FnOnce(&Cx, &mut dyn io::Write) -> Result<(), E> + Send + 'static,
        E: Into<BoxError>,
    {
        SyncBody::new(self, Location::caller(), |out| {
            let cx = out.cx;
            write(cx, out).map_err(Into::into)
        })
    }
}

/// The chunks of an iterator that does not fail.
pub(super) fn whole<I: IntoIterator>(
    iter: I,
) -> impl Iterator<Item = Result<I::Item, Infallible>> + use<I> {
    iter.into_iter().map(Ok)
}

impl SyncBody {
    /// The chunks of what `make` makes on the thread.
    pub(super) fn of_chunks<F, I, D, E>(
        bridge: &Bridge,
        at: &'static Location<'static>,
        make: F,
    ) -> Self
    where
        F: FnOnce(&Cx) -> I + Send + 'static,
        I: IntoIterator<Item = Result<D, E>>,
        D: Into<Bytes>,
        E: Into<BoxError>,
    {
        Self::new(bridge, at, move |out| {
            for chunk in make(out.cx) {
                out.push(chunk.map_err(Into::into)?.into())?;
            }
            Ok(())
        })
    }

    pub(super) fn of_writes<F>(bridge: &Bridge, at: &'static Location<'static>, write: F) -> Self
    where
        F: FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    {
        Self::new(bridge, at, move |out| write(out).map_err(Into::into))
    }
}

/// The writer's end, on the request's thread.
pub(super) struct Out<'a> {
    pub(super) pipe: &'a Pipe,
    pub(super) cx: &'a Cx,
}

impl Out<'_> {
    fn push(&mut self, data: Bytes) -> io::Result<()> {
        if data.is_empty() {
            return self.read_by_someone();
        }
        loop {
            match self.pipe.push(&data) {
                Ok(()) => return Ok(()),
                Err(refused) => self.refused(refused, data.len())?,
            }
        }
    }

    /// What code learns that has nothing to write.
    fn read_by_someone(&self) -> io::Result<()> {
        match self.pipe.is_closed() {
            true => Err(self.broken()),
            false => Ok(()),
        }
    }

    /// Waits for room, if there can be any.
    fn refused(&self, refused: Refused, len: usize) -> io::Result<()> {
        match refused {
            Refused::Full if self.cx.local.is_head_awaited() => self.wait_below_the_head(len),
            Refused::Full => self
                .cx
                .block_on(poll_fn(|task| self.pipe.poll_room(task, len)))
                .map_err(interrupted),
            Refused::Closed => Err(self.broken()),
        }
    }

    fn broken(&self) -> io::Error {
        self.cx.local.tell();
        io::ErrorKind::BrokenPipe.into()
    }

    /// Whoever reads before the head may wait for the head, which waits for us: what layers read ahead has
    /// room, and the wait for more is bounded.
    fn wait_below_the_head(&self, len: usize) -> io::Result<()> {
        if self.pipe.raise_limit(BUFFER) {
            return Ok(());
        }
        let mut bound = Bound::new(self.cx.local.session.pool.config().wait_limit);
        let room = poll_fn(|task| {
            let late = |bound: &mut Bound| bound.poll(task).is_ready();
            if bound.as_mut().is_some_and(late) {
                return Poll::Ready(Err(BridgeError::HEAD_BLOCKED));
            }
            self.pipe.poll_room(task, len).map(Ok)
        });
        let waited = self.cx.block_on(room);
        waited.and_then(|room| room).map_err(interrupted)
    }
}

impl io::Write for Out<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.is_empty() {
            return self.read_by_someone().map(|()| 0);
        }
        loop {
            match self.pipe.write(data) {
                Ok(written) => return Ok(written),
                Err(refused) => self.refused(refused, 1)?,
            }
        }
    }

    /// Says whether anybody reads; what was written is on its way.
    fn flush(&mut self) -> io::Result<()> {
        self.read_by_someone()
    }
}

fn interrupted(error: BridgeError) -> io::Error {
    let kind = match error.kind() {
        BridgeErrorKind::Ended | BridgeErrorKind::Cancelled => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
