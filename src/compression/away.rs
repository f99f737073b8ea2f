//! An encoder that works elsewhere: on one thread at a time, or on several.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    encoder::Encoder,
    offload::{Harvest, Home, Offload},
    options::{Core, Flush},
    parallel::{LONG_BLOCK, Parallel},
    source::broken,
};
use crate::BoxError;

#[derive(Debug)]
pub(super) enum Away {
    One(Box<Offload>),
    Many(Box<Parallel>),
}

/// Why an encoder did not go away.
pub(super) enum Stay {
    /// No runtime is here to lend a thread: this is it, back.
    NoRuntime(Encoder),
    Failed(BoxError),
}

impl Away {
    pub(super) fn start(core: &Arc<Core>, encoder: Encoder) -> Result<Self, Stay> {
        let Ok(handle) = Handle::try_current() else {
            return Err(Stay::NoRuntime(encoder));
        };
        let flush_each = core.options.flush == Flush::EveryFrame;
        match encoder {
            Encoder::Gzip(gzip) if core.options.parallel && !flush_each => {
                let parallel = Parallel::start(core, handle, gzip).map_err(Stay::Failed)?;
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

    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::One(one) => one.has_room(),
            Self::Many(many) => many.has_room(),
        }
    }

    /// Puts in what may be put in at once. False if there was nothing.
    pub(super) fn feed(&mut self, input: &mut Bytes) -> bool {
        if input.is_empty() {
            return false;
        }
        match self {
            // As it came: it is not copied, and not begun until there is room for its output.
            Self::One(one) => one.put(std::mem::take(input)),
            Self::Many(many) => many.put(input.split_to(input.len().min(LONG_BLOCK))),
        }
        true
    }

    /// Nothing more is ready: small frames need not wait for each other, but what is under way
    /// comes first, and more may have come by then.
    pub(super) fn idle(&mut self) {
        match self {
            Self::One(one) if !one.is_busy() => one.put_gathered(),
            Self::Many(many) if !many.is_busy() => many.put_gathered(),
            _ => {}
        }
    }

    /// Nothing more will come.
    pub(super) fn end(&mut self) {
        match self {
            Self::One(one) => one.end(),
            Self::Many(many) => many.put_gathered(),
        }
    }

    pub(super) fn harvest(&mut self, cx: &mut Context<'_>) -> Poll<Result<Harvest, BoxError>> {
        match self {
            Self::One(one) => one.harvest(cx),
            Self::Many(many) => Poll::Ready(match ready!(many.harvest(cx)) {
                Ok(Some(frame)) => Ok(Harvest::Frame(frame)),
                Ok(None) => match many.take_gzip() {
                    Some(gzip) => Ok(Harvest::Home {
                        encoder: Encoder::Gzip(gzip),
                        left: Bytes::new(),
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
        let Ok(mut away) = Away::start(&core, encoder) else {
            panic!("there is a runtime");
        };
        let large = Bytes::from(vec![b'x'; 64 << 20]);
        let mut input = large.clone();
        while away.has_room() && away.feed(&mut input) {}
        let under_way = (large.len() - input.len()) / LONG_BLOCK;
        assert!(
            (2..=2 * core.workers.limit() + 2).contains(&under_way),
            "{under_way} blocks"
        );
    }
}
