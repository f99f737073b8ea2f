//! One gzip member (RFC 1952) over raw deflate, which can be parked between any two flushes.
//!
//! A sync flush ends byte-aligned with nothing left inside the compressor. From there any other
//! compressor can go on with the same member, once it has been told the text before: that text,
//! the CRC and the length are all a parked stream is.

use std::{io, sync::Arc};

use bytes::Bytes;
use flate2::{Crc, FlushCompress};

use super::{
    super::{
        options::{Core, Flush, WINDOW},
        output::Output,
        pool::Lease,
        stats::Parked,
    },
    CUT, FULL, MOST_HELD,
    history::History,
};

/// A final deflate block with nothing in it: the static code's end-of-block symbol.
const EMPTY_FINAL_BLOCK: [u8; 2] = [0x03, 0x00];

#[derive(Debug)]
pub(in super::super) struct Gzip {
    pub(super) core: Arc<Core>,
    /// `None` before the first byte, while parked, and after the end.
    lease: Option<Lease>,
    parked: Option<Parked>,
    crc: Crc,
    history: History,
    /// Text that is less than a cut.
    pending: Vec<u8>,
    output: Output,
    /// Text taken in and output given for it, both since the last flush or since that output was enough to be handed on.
    held: u32,
    given: u32,
    begun: bool,
    /// The compressor has something inside.
    charged: bool,
    /// Output was flushed to be handed on.
    due: bool,
}

impl Gzip {
    pub(super) fn new(core: Arc<Core>, history: usize) -> Self {
        Self {
            core,
            lease: None,
            parked: None,
            crc: Crc::new(),
            history: History::new(history),
            pending: Vec::new(),
            output: Output::default(),
            held: 0,
            given: 0,
            begun: false,
            charged: false,
            due: false,
        }
    }

    /// The compressor is given cuts of one size, counted from the last flush: what it makes of a text depends on how that
    /// is cut, and is not to depend on the frames it came in, or on who had time for them when.
    pub(super) fn write(&mut self, mut input: &[u8]) -> io::Result<()> {
        if !self.pending.is_empty() {
            let (head, rest) = input.split_at(input.len().min(CUT - self.pending.len()));
            self.pending.extend_from_slice(head);
            if self.pending.len() < CUT {
                return Ok(());
            }
            self.encode_pending(FlushCompress::None)?;
            input = rest;
        }
        let cuts = input.chunks_exact(CUT);
        self.pending.extend_from_slice(cuts.remainder());
        for cut in cuts {
            self.encode(cut, FlushCompress::None)?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self.is_settled() {
            true => Ok(()),
            false => self.encode_pending(FlushCompress::Sync),
        }
    }

    /// All that was written has come out.
    fn is_settled(&self) -> bool {
        !self.charged && self.pending.is_empty()
    }

    fn encode_pending(&mut self, flush: FlushCompress) -> io::Result<()> {
        let mut text = std::mem::take(&mut self.pending);
        self.encode(&text, flush)?;
        text.clear();
        self.pending = text;
        Ok(())
    }

    fn encode(&mut self, text: &[u8], flush: FlushCompress) -> io::Result<()> {
        self.wake()?;
        self.begin();
        self.crc.update(text);
        self.history.push(text);
        let before = self.output.len();
        self.deflate(text, flush)?;
        self.charged = flush != FlushCompress::Sync;
        if !self.charged {
            (self.held, self.given) = (0, 0);
            return Ok(());
        }
        self.held += text.len() as u32;
        self.given += (self.output.len() - before) as u32;
        if self.given >= FULL as u32 {
            (self.held, self.given) = (0, 0);
        } else if self.held >= MOST_HELD as u32 && self.core.options.flush != Flush::Never {
            self.due = true;
            return self.encode(&[], FlushCompress::Sync);
        }
        Ok(())
    }

    /// Whether what was written is to be handed on, enough of it or not.
    pub(super) fn is_due(&self) -> bool {
        self.due || self.output.len() >= FULL
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.pending);
        self.end(&text)
    }

    /// All of a member in one go: `input` is its only text.
    pub(super) fn whole(&mut self, input: &[u8]) -> io::Result<()> {
        let (cuts, rest) = input.split_at(input.len() - input.len() % CUT);
        self.write(cuts)?;
        self.end(rest)
    }

    /// Ends the member behind `input`, which is less than a cut.
    fn end(&mut self, input: &[u8]) -> io::Result<()> {
        if !input.is_empty() {
            self.wake()?;
        }
        self.begin();
        self.crc.update(input);
        match self.lease {
            Some(_) => self.deflate(input, FlushCompress::Finish)?,
            // Nothing is pending: parked, or nothing was ever written. No compressor is needed.
            None => self.output.push(&EMPTY_FINAL_BLOCK),
        }
        self.output.push(&self.crc.sum().to_le_bytes());
        self.output.push(&self.crc.amount().to_le_bytes());
        self.charged = false;
        self.parked = None;
        Ok(())
    }

    /// Parks if the pool is short of compressors, or there is none here.
    pub(super) fn rest(&mut self) {
        if self.lease.as_ref().is_some_and(Lease::may_stay)
            || self.parked.is_some()
            || !self.begun
            || !self.is_settled()
            || !self.output.is_empty()
        {
            return;
        }
        self.let_go();
        self.pending = Vec::new();
        self.parked = Some(Parked::new(Arc::clone(&self.core)));
    }

    /// Gives the compressor back, and with it the buffer, which has been emptied.
    fn let_go(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            lease.keep_scratch(std::mem::take(&mut self.output));
        }
    }

    pub(super) fn output(&self) -> &[u8] {
        self.output.as_slice()
    }

    pub(super) fn take_output(&mut self) -> Bytes {
        self.due = false;
        self.output.take()
    }

    /// The header, with a file name of random length. No time stamp, unknown system.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let padding = self.core.draw_padding();
        let flags = if padding > 0 { 0b1000 } else { 0 };
        self.output
            .push(&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255]);
        if padding > 0 {
            // Its terminating zero counts as one byte of the padding.
            self.output.push_repeated(b'a', padding - 1);
            self.output.push(&[0]);
        }
    }

    /// Takes a compressor if there is none, and tells it what the decoder has seen last.
    fn wake(&mut self) -> io::Result<()> {
        if self.lease.is_some() {
            return Ok(());
        }
        let mut lease = Lease::take(&self.core);
        let text = self.history.as_slice();
        if !text.is_empty() {
            lease.prime(text)?;
        }
        if self.output.is_empty() {
            self.output = lease.take_scratch();
        }
        self.lease = Some(lease);
        self.parked = None;
        Ok(())
    }

    fn deflate(&mut self, input: &[u8], flush: FlushCompress) -> io::Result<()> {
        match &mut self.lease {
            Some(lease) => lease.deflate(input, &mut self.output, flush),
            None => Ok(()),
        }
    }

    pub(in super::super) fn has_begun(&self) -> bool {
        self.begun || !self.pending.is_empty()
    }

    /// The encoder of the same member for what comes behind `text`, which is this one's to write: the header before it,
    /// a flush behind it, and no end.
    pub(in super::super) fn behind(&self, text: &[u8]) -> Box<Self> {
        let mut behind = Self::new(Arc::clone(&self.core), self.history.most());
        behind.begun = true;
        behind.crc.update(text);
        behind
            .history
            .overfill(&text[text.len().saturating_sub(WINDOW)..]);
        Box::new(behind)
    }

    /// Ends at a byte and lets the compressor go, for blocks made elsewhere to follow: what is
    /// written so far, and the text they may refer to.
    pub(in super::super) fn step_aside(&mut self) -> io::Result<(Bytes, Bytes)> {
        self.flush()?;
        self.begin();
        let written = self.take_output();
        self.let_go();
        // It is not waiting, but at work elsewhere.
        self.parked = None;
        Ok((written, Bytes::copy_from_slice(self.history.as_slice())))
    }

    /// Counts a block's text in.
    pub(in super::super) fn append(&mut self, block: &Crc) {
        self.crc.combine(block);
    }

    /// Goes on after such blocks, whose last text is `before`.
    pub(in super::super) fn step_in(&mut self, before: &[u8]) {
        self.history.replace(before);
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        self.let_go();
    }
}
