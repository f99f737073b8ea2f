//! One compressed stream: what to do next, given what the inner body said.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::{
    away::{Away, Stay},
    encoder::Encoder,
    gathered::Gathered,
    headers::Form,
    lead::Lead,
    offload::Harvest,
    options::{BURST, Core, Flush},
    phase::{End, Phase},
    source::{Account, Event, Inner, Source, broken},
    stats::Open,
};
use crate::{BodyError, BoxError};

/// Bytes that one poll encodes, where there is nobody else to encode more than a burst.
const MOST_ENCODED: usize = 2 * BURST;

/// The encoder's half of a compressed body.
#[derive(Debug)]
pub(super) struct Stream {
    source: Source,
    engine: Engine,
    /// Taken from the inner body, not yet encoded: all that is ready, so that gzip's encoder, if it goes away, does so
    /// before its tables are in this core's cache.
    input: Gathered,
    /// It is to be encoded before more is asked for.
    sealed: bool,
    phase: Phase,
    form: Form,
    /// Bytes that this poll has encoded.
    encoded: usize,
    /// Set before each poll and cleared after it: still set means that the poll panicked.
    polling: bool,
    /// Plain bytes counted with the frames handed on; above zero once there was one.
    counted: u64,
    core: Arc<Core>,
    /// `None` if no stream is what this becomes: nobody is told.
    open: Option<Open>,
}

/// Where the encoder is.
#[derive(Debug)]
enum Engine {
    Here(Encoder),
    Away(Away),
    Gone,
}

/// What a step came to.
enum Step {
    /// Look at the phase again.
    Next,
    /// Hand on what the encoder has written, if anything.
    Emit,
    /// The inner body is pending: hand on what there is, and wait with as little as possible.
    Idle,
    /// Nothing to hand on: a worker is busy, or the output may not be flushed.
    Wait,
    Frame(Bytes),
}

impl Stream {
    /// The stream of what `source` has given already, `input`, and is going to give.
    pub(super) fn new(core: &Arc<Core>, form: Form, source: Source, input: Bytes) -> Self {
        let open = Open::new(Arc::clone(core));
        Self::with(core, form, source, input, Phase::Reading, Some(open))
    }

    /// One of `input` and nothing else, whose frames are not to go out by themselves.
    pub(super) fn of_all(core: &Arc<Core>, form: Form, input: Bytes) -> Self {
        let source = Source::new(Account {
            promised: None,
            ends_at_length: false,
            given: input.len() as u64,
        });
        let phase = Phase::Ended(End::Well(None));
        Self::with(core, form, source, input, phase, None)
    }

    fn with(
        core: &Arc<Core>,
        form: Form,
        source: Source,
        input: Bytes,
        phase: Phase,
        open: Option<Open>,
    ) -> Self {
        let mut gathered = Gathered::new(&core.options, form.coding);
        gathered.put(input);
        Self {
            source,
            engine: Engine::Here(Encoder::for_stream(core, form.coding)),
            input: gathered,
            sealed: false,
            phase,
            form,
            encoded: 0,
            polling: false,
            counted: 0,
            core: Arc::clone(core),
            open,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done) && !self.polling
    }

    pub(super) fn poll_frame<B>(
        &mut self,
        mut inner: Pin<&mut Inner<B>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        if self.polling {
            self.fail(inner.as_mut(), broken());
        }
        self.polling = true;
        self.source.begin_turn();
        self.encoded = 0;
        let polled = loop {
            let step = match self.phase {
                Phase::Reading => match self.engine {
                    Engine::Away(_) => self.read_away(inner.as_mut(), cx),
                    _ => self.read(inner.as_mut(), cx),
                },
                Phase::Ended(_) => match self.engine {
                    Engine::Away(_) => self.end_away(cx),
                    _ => self.end(cx),
                },
                _ => break self.last(cx),
            };
            match step {
                Ok(Step::Next) => {}
                Ok(Step::Wait) => break Poll::Pending,
                Ok(Step::Frame(frame)) => break self.emit(frame),
                Ok(step @ (Step::Emit | Step::Idle)) => {
                    let idle = matches!(step, Step::Idle);
                    let output = self.take_output(idle);
                    let output = self.phase.part(output);
                    if !output.is_empty() {
                        break self.emit(output);
                    } else if idle {
                        break Poll::Pending;
                    }
                }
                Err(error) => self.fail(inner.as_mut(), error),
            }
        };
        self.polling = false;
        polled
    }

    /// Gathers what is ready, up to the burst or as much more as is there at once, and encodes that here, or sends the
    /// encoder away with it.
    fn read<B>(
        &mut self,
        mut inner: Pin<&mut Inner<B>>,
        cx: &mut Context<'_>,
    ) -> Result<Step, BoxError>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        loop {
            let waiting = self.source.is_waiting();
            let enough = self.input.is_plenty() && self.source.is_time_up();
            if self.sealed || waiting || enough || self.input.is_full() {
                self.sealed = !self.input.is_empty();
                if self.sealed {
                    return self.encode(cx);
                }
                if waiting {
                    return self.rest();
                }
            }
            if self.source.is_turn_over() {
                cx.waker().wake_by_ref();
                return Ok(Step::Wait);
            }
            if self.ask(inner.as_mut(), cx) {
                return Ok(Step::Next);
            }
        }
    }

    /// Takes what the inner body has ready, if anything. True if that is its end.
    fn ask<B>(&mut self, inner: Pin<&mut Inner<B>>, cx: &mut Context<'_>) -> bool
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        if let Poll::Ready(event) = self.source.poll(inner, cx) {
            self.take(event);
        }
        !matches!(self.phase, Phase::Reading)
    }

    /// The inner body is pending, and all that it gave is encoded.
    fn rest(&mut self) -> Result<Step, BoxError> {
        self.input.refill();
        let Engine::Here(encoder) = &mut self.engine else {
            return Err(broken());
        };
        if self.core.options.flush == Flush::Never {
            return Ok(Step::Wait);
        }
        encoder.flush()?;
        Ok(Step::Idle)
    }

    /// Encodes one slice of `input`, or sends the encoder away when the burst is used up.
    ///
    /// What may be encoded here is encoded in one go. Others that have their turn in the middle of it take compressors of
    /// their own, hundreds of them in a crowd, and with tables that are cold it takes twice as long.
    fn encode(&mut self, cx: &mut Context<'_>) -> Result<Step, BoxError> {
        let mut encoder = match std::mem::replace(&mut self.engine, Engine::Gone) {
            Engine::Here(encoder) => encoder,
            _ => return Err(broken()),
        };
        if self.input.exceeds_credit() {
            let ended = matches!(self.phase, Phase::Ended(_));
            let leads = Lead::is_possible(&self.core, &encoder);
            if ended && self.may_stay(&encoder, leads) {
                self.input.allow_all();
            } else if ended || !encoder.is_to_be_made() {
                // Once all is there a worker has it for one turn, and frees what it makes.
                match Away::start(&self.core, encoder, &mut self.input, leads) {
                    Ok(away) => {
                        self.engine = Engine::Away(away);
                        self.sealed = false;
                        return Ok(Step::Next);
                    }
                    Err(Stay::NoRuntime(back)) => {
                        self.input.allow_all();
                        encoder = back;
                    }
                    Err(Stay::Failed(error)) => return Err(error),
                }
            }
        }
        let (slice, flush) = self.input.take_inline(encoder.slice()).unwrap_or_default();
        self.encoded += slice.len();
        encoder.write(&slice)?;
        if flush {
            encoder.flush()?;
        }
        let emit = flush || encoder.is_due()?;
        self.engine = Engine::Here(encoder);
        if emit {
            return Ok(Step::Emit);
        }
        if !self.input.is_empty() && self.encoded >= MOST_ENCODED {
            cx.waker().wake_by_ref();
            return Ok(Step::Wait);
        }
        Ok(Step::Next)
    }

    /// Whether all of an ended stream is encoded here although that is more than a burst: to bring another thread in takes
    /// as long as some kilobytes.
    ///
    /// gzip, for which this was measured; and not in parallel, where the blocks show where it went, and how much is left
    /// by then is a matter of time.
    fn may_stay(&self, encoder: &Encoder, leads: bool) -> bool {
        // Less if it would begin beside this one.
        let more = BURST / if leads { 8 } else { 2 };
        let alone = matches!(encoder, Encoder::Gzip(_)) && !self.core.options.parallel;
        alone && !self.input.exceeds_credit_by(more)
    }

    /// Keeps the worker fed while the inner body is ready.
    fn read_away<B>(
        &mut self,
        mut inner: Pin<&mut Inner<B>>,
        cx: &mut Context<'_>,
    ) -> Result<Step, BoxError>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        let mut over = false;
        while let Engine::Away(away) = &mut self.engine {
            if !away.fill(&mut self.input) {
                break;
            }
            over = self.source.is_turn_over();
            let waiting = self.source.is_waiting();
            if over || waiting {
                away.idle(&mut self.input, waiting);
                break;
            }
            if self.ask(inner.as_mut(), cx) {
                return Ok(Step::Next);
            }
        }
        let step = self.harvest(cx)?;
        // A frame is as good: whoever has it asks for the next.
        if over && matches!(step, Step::Wait) {
            cx.waker().wake_by_ref();
        }
        Ok(step)
    }

    /// The same for what the inner body gave last.
    fn end_away(&mut self, cx: &mut Context<'_>) -> Result<Step, BoxError> {
        let well = matches!(self.phase, Phase::Ended(End::Well(_)));
        if let Engine::Away(away) = &mut self.engine {
            away.end(&mut self.input, well);
        }
        self.harvest(cx)
    }

    /// A frame from the worker, or the encoder back once it has done everything.
    fn harvest(&mut self, cx: &mut Context<'_>) -> Result<Step, BoxError> {
        let Engine::Away(away) = &mut self.engine else {
            return Err(broken());
        };
        match away.harvest(cx) {
            Poll::Pending => Ok(Step::Wait),
            Poll::Ready(Ok(Harvest::Frame(frame))) => Ok(Step::Frame(frame)),
            Poll::Ready(Ok(Harvest::Last(frame))) => {
                self.engine = Engine::Gone;
                self.phase.advance();
                Ok(Step::Frame(frame))
            }
            Poll::Ready(Ok(Harvest::Home {
                encoder,
                left,
                refused,
            })) => {
                self.engine = Engine::Here(encoder);
                self.input.put_back(left.into_iter());
                if refused {
                    // Sent away again, it would be refused again.
                    self.input.allow_all();
                }
                Ok(Step::Next)
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Data(data) => self.input.put(data),
            Event::Nothing => {}
            Event::End => self.phase = Phase::Ended(End::Well(None)),
            Event::Trailers(mut trailers) => {
                self.form.encode_trailers(&mut trailers);
                self.phase = Phase::Ended(End::Well(Some(trailers)));
            }
            Event::Failed(error) => self.phase = Phase::Ended(End::Failed(error)),
        }
    }

    /// The encoded end, or what stands in for it: what came before a failure still reaches the
    /// client, a well-formed end does not.
    fn end(&mut self, cx: &mut Context<'_>) -> Result<Step, BoxError> {
        if !self.input.is_empty() {
            return self.encode(cx);
        }
        let Engine::Here(encoder) = &mut self.engine else {
            return Err(broken());
        };
        match self.phase {
            Phase::Ended(End::Failed(_)) => encoder.flush()?,
            _ => encoder.finish()?,
        }
        self.phase.advance();
        Ok(Step::Emit)
    }

    fn last(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Phase::Failed { gap, tail, .. } = &mut self.phase {
            if let Some(tail) = tail.take() {
                return self.emit(tail);
            }
            if self.counted > 0 {
                ready!(gap.poll(cx));
            }
        }
        Poll::Ready(match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Phase::Failed { error, .. } => Some(Err(error)),
            _ => None,
        })
    }

    fn fail<B: Body>(&mut self, mut inner: Pin<&mut Inner<B>>, error: BoxError) {
        inner.set(Inner::Gone);
        self.input.clear();
        self.engine = Engine::Gone;
        self.phase = Phase::failed(BodyError::new(error));
    }

    /// The output so far. With it gone, an idle stream may park and an ended one is done with its
    /// compressor.
    fn take_output(&mut self, idle: bool) -> Bytes {
        let Engine::Here(encoder) = &mut self.engine else {
            return Bytes::new();
        };
        let output = match encoder.output_len() {
            0 => Bytes::new(),
            _ => encoder.take_output(),
        };
        if idle {
            encoder.rest();
        } else if !matches!(self.phase, Phase::Reading | Phase::Ended(_)) {
            self.engine = Engine::Gone;
        }
        output
    }

    fn emit(&mut self, output: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let given = self.source.given();
        if let Some(open) = &self.open {
            open.count(given - self.counted, output.len() as u64);
        }
        self.counted = given;
        Poll::Ready(Some(Ok(Frame::data(output))))
    }
}
