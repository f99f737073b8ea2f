//! An encoder that works elsewhere: on one thread at a time, or on several.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::runtime::Handle;

use super::{
    encoder::Encoder,
    gathered::Gathered,
    lead::Lead,
    offload::{Harvest, Home, Offload},
    options::{Core, Flush},
    parallel::{LONG_BLOCK, Parallel},
    source::broken,
};
use crate::BoxError;

#[derive(Debug)]
pub(super) struct Away {
    place: Place,
    /// What comes before all that is done there, done here.
    lead: Option<Box<Lead>>,
}

#[derive(Debug)]
enum Place {
    One(Box<Offload>),
    Many(Box<Parallel>),
}

/// Why an encoder did not go away.
pub(super) enum Stay {
    /// No runtime is here to lend a thread: this is it, back.
    NoRuntime(Encoder),
    Failed(BoxError),
}

impl Place {
    fn find(core: &Arc<Core>, handle: Handle, encoder: Encoder) -> Result<Self, BoxError> {
        let flush_each = core.options.flush == Flush::EveryFrame;
        match encoder {
            Encoder::Gzip(gzip) if core.options.parallel && !flush_each => {
                let parallel = Parallel::start(core, handle, gzip)?;
                Ok(Self::Many(Box::new(parallel)))
            }
            encoder => {
                let home = match core.options.flush {
                    _ if !core.options.is_slow(encoder.coding()) => Home::AsItIs,
                    // Flushed already.
                    Flush::EveryFrame => Home::AsItIs,
                    Flush::WhenIdle => Home::Flushed,
                    Flush::Never => Home::AtEnd,
                };
                let offload = Offload::start(core, handle, encoder, flush_each, home);
                Ok(Self::One(Box::new(offload)))
            }
        }
    }
}

impl Away {
    /// Sends `encoder` away, which is to encode `input`: all of it, or all but its beginning if that `leads`.
    pub(super) fn start(
        core: &Arc<Core>,
        encoder: Encoder,
        input: &mut Gathered,
        leads: bool,
    ) -> Result<Self, Stay> {
        let Ok(handle) = Handle::try_current() else {
            return Err(Stay::NoRuntime(encoder));
        };
        let (lead, encoder) = match leads {
            true => Lead::split_off(core, encoder, input),
            false => (None, encoder),
        };
        let place = Place::find(core, handle, encoder).map_err(Stay::Failed)?;
        Ok(Self { place, lead })
    }

    pub(super) fn has_room(&self) -> bool {
        match &self.place {
            Place::One(one) => one.has_room(),
            Place::Many(many) => many.has_room(),
        }
    }

    fn is_busy(&self) -> bool {
        match &self.place {
            Place::One(one) => one.is_busy(),
            Place::Many(many) => many.is_busy(),
        }
    }

    /// Puts in a piece of `input`, not begun until there is room for its output; one that may still grow only if this is
    /// the `last` of it. False if there was none.
    fn feed(&mut self, input: &mut Gathered, last: bool) -> bool {
        let most = match self.place {
            Place::One(_) => usize::MAX,
            Place::Many(_) => LONG_BLOCK,
        };
        let piece = match last {
            true => input.take(most),
            false => input.take_full(most),
        };
        let fed = piece.is_some();
        match (&mut self.place, piece) {
            (Place::One(one), Some(piece)) => one.put(piece),
            (Place::Many(many), Some(piece)) => many.put(piece),
            (_, None) => {}
        }
        fed
    }

    /// Puts in what there is room for, and keeps small frames that others may join. True if there is room for more.
    pub(super) fn fill(&mut self, input: &mut Gathered) -> bool {
        while self.has_room() {
            if !self.feed(input, false) {
                return true;
            }
        }
        false
    }

    /// Nothing more is to be had in this poll: small frames need not wait for each other, but what is under way
    /// comes first, and more may have come by then. A block waits for more unless the inner body is `waiting`, too.
    pub(super) fn idle(&mut self, input: &mut Gathered, waiting: bool) {
        if !self.is_busy() {
            while self.has_room() && self.feed(input, true) {}
            match &mut self.place {
                Place::Many(many) if waiting => many.close(),
                Place::Many(_) | Place::One(_) => {}
            }
        }
    }

    /// Nothing more will come, and if all went `well` the encoded form ends behind it.
    pub(super) fn end(&mut self, input: &mut Gathered, well: bool) {
        while self.has_room() && self.feed(input, true) {}
        if input.is_empty() {
            match &mut self.place {
                Place::One(one) => one.end(well),
                Place::Many(many) => many.close(),
            }
        }
    }

    pub(super) fn harvest(&mut self, cx: &mut Context<'_>) -> Poll<Result<Harvest, BoxError>> {
        if let Some(lead) = &mut self.lead {
            let frame = ready!(lead.poll(cx));
            if lead.is_over() {
                // Its compressor is for others now.
                self.lead = None;
            }
            return Poll::Ready(frame.map(Harvest::Frame));
        }
        match &mut self.place {
            Place::One(one) => one.harvest(cx),
            Place::Many(many) => Poll::Ready(match ready!(many.harvest(cx)) {
                Ok(Some(frame)) => Ok(Harvest::Frame(frame)),
                Ok(None) => match many.take_gzip() {
                    Some(gzip) => Ok(Harvest::Home {
                        encoder: Encoder::Gzip(gzip),
                        left: Vec::new(),
                        refused: false,
                    }),
                    None => Err(broken()),
                },
                Err(error) => Err(error),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::{negotiation::Coding, options::Options},
        *,
    };

    #[test]
    fn one_large_frame_is_not_all_under_way_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _context = runtime.enter();
        let core = Arc::new(Core::new(Options {
            parallel: true,
            ..Options::default()
        }));
        let encoder = Encoder::for_stream(&core, Coding::Gzip);
        let large = Bytes::from(vec![b'x'; 64 << 20]);
        let mut input = Gathered::new(&core.options, Coding::Gzip);
        input.put(large.clone());
        let Ok(mut away) = Away::start(&core, encoder, &mut input, false) else {
            panic!("there is a runtime");
        };
        assert!(!away.fill(&mut input));
        let left: usize = std::iter::from_fn(|| input.take(usize::MAX))
            .map(|piece| piece.len())
            .sum();
        let under_way = (large.len() - left) / LONG_BLOCK;
        assert!(
            (2..=2 * core.workers.limit() + 2).contains(&under_way),
            "{under_way} blocks"
        );
    }
}
