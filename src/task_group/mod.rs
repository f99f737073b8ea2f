//! Tasks that cannot outlive the response they feed.

mod channel;

pub use channel::{
    Closed, FrameBody, FrameSender, FrameSink, FrameWriter, SendFrame, TrySendError,
};
