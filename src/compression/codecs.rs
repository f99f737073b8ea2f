//! Brotli, Zstandard and zlib, on the codecs of `async-compression` without its I/O.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use async_compression::{
    codecs::EncodeV2,
    core::util::{PartialBuffer, WriteBuffer},
};
use bytes::Bytes;

use super::{
    encoder::{FULL, MOST_HELD},
    negotiation::Coding,
    options::{Core, Flush, Options},
};

/// Room made for output at a time.
const GROWTH: usize = 16 << 10;

/// An encoder that lives as long as its stream: these codecs cannot be parked.
pub(super) struct Codec {
    /// `None` before the first byte: hundreds of kilobytes, and with some levels tens of milliseconds.
    ///
    /// Never locked: it makes this `Sync`, so that no feature changes what a body or a future is.
    encoder: Option<Mutex<Box<dyn EncodeV2 + Send>>>,
    coding: Coding,
    pub(super) core: Arc<Core>,
    output: Vec<u8>,
    /// Written to since the last flush.
    dirty: bool,
    /// Input since output was taken.
    held: usize,
}

impl Codec {
    pub(super) fn new(coding: Coding, core: Arc<Core>) -> Self {
        Self {
            encoder: None,
            coding,
            core,
            output: Vec::new(),
            dirty: false,
            held: 0,
        }
    }

    pub(super) fn coding(&self) -> Coding {
        self.coding
    }

    pub(super) fn write(&mut self, input: &[u8]) -> io::Result<()> {
        self.dirty |= !input.is_empty();
        self.held += input.len();
        let mut input = PartialBuffer::new(input);
        while !input.unwritten().is_empty() {
            self.step(|encoder, output| encoder.encode(&mut input, output).map(|()| true))?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.dirty) {
            while !self.step(|encoder, output| encoder.flush(output))? {}
        }
        Ok(())
    }

    /// Whether what was written is to be handed on: flushes it if it is much and little has come of it.
    pub(super) fn is_due(&mut self) -> io::Result<bool> {
        let held = self.held >= MOST_HELD && self.core.options.flush != Flush::Never;
        if held {
            self.flush()?;
        }
        Ok(held || self.output.len() >= FULL)
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        while !self.step(|encoder, output| encoder.finish(output))? {}
        Ok(())
    }

    pub(super) fn is_new(&self) -> bool {
        self.encoder.is_none()
    }

    /// Not of a slow one, which takes too long for a task.
    pub(super) fn is_to_be_made(&self) -> bool {
        self.is_new() && !self.core.options.is_slow(self.coding)
    }

    pub(super) fn rest(&mut self) {
        self.output = Vec::new();
    }

    pub(super) fn output(&self) -> &[u8] {
        &self.output
    }

    /// In a buffer of its own size; the scratch buffer stays.
    pub(super) fn take_output(&mut self) -> Bytes {
        self.held = 0;
        let bytes = Bytes::copy_from_slice(&self.output);
        self.output.clear();
        bytes
    }

    /// One call of the codec, with room behind the output so far.
    fn step(
        &mut self,
        call: impl FnOnce(&mut dyn EncodeV2, &mut WriteBuffer<'_>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let encoder = self
            .encoder
            .get_or_insert_with(|| Mutex::new(encoder(self.coding, &self.core.options)));
        let begin = self.output.len();
        self.output.resize(begin + GROWTH, 0);
        let mut room = WriteBuffer::new_initialized(&mut self.output[begin..]);
        let encoder = encoder.get_mut().unwrap_or_else(PoisonError::into_inner);
        let done = call(encoder.as_mut(), &mut room);
        let written = room.written_len();
        self.output.truncate(begin + written);
        done
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

fn encoder(coding: Coding, options: &Options) -> Box<dyn EncodeV2 + Send> {
    match coding {
        #[cfg(feature = "br")]
        Coding::Brotli => {
            use async_compression::codecs::{BrotliEncoder, brotli::params::EncoderParams};
            Box::new(BrotliEncoder::new(
                EncoderParams::default()
                    .quality(async_compression::Level::Precise(options.br_level)),
            ))
        }
        #[cfg(feature = "zstd")]
        Coding::Zstd => Box::new(async_compression::codecs::ZstdEncoder::new(
            options.zstd_level,
        )),
        #[cfg(feature = "deflate")]
        Coding::Deflate => Box::new(async_compression::codecs::ZlibEncoder::new(
            flate2::Compression::new(options.level).into(),
        )),
        _ => unreachable!("no codec is enabled without its feature"),
    }
}
