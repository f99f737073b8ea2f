//! An encoder that works elsewhere: on one thread at a time, or on several.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    encoder::Encoder,
    error::Broken,
    offload::{Harvest, Offload},
    options::{Core, Flush},
    parallel::Parallel,
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
            encoder => Ok(Self::One(Box::new(Offload::start(
                core, handle, encoder, flush_each,
            )))),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::One(one) => one.has_room(),
            Self::Many(many) => many.has_room(),
        }
    }

    pub(super) fn put(&mut self, data: Bytes) {
        match self {
            Self::One(one) => one.put(data),
            Self::Many(many) => many.put(data),
        }
    }

    /// Nothing more is ready: small frames need not wait for each other, but what is under way
    /// comes first, and more may have come by then.
    pub(super) fn idle(&mut self) {
        let busy = match self {
            Self::One(one) => one.is_busy(),
            Self::Many(many) => many.is_busy(),
        };
        if !busy {
            self.put_gathered();
        }
    }

    /// Nothing more will come.
    pub(super) fn put_gathered(&mut self) {
        match self {
            Self::One(one) => one.put_gathered(),
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
                    None => Err(Broken.into()),
                },
                Err(error) => Err(error),
            }),
        }
    }
}
