//! Task groups: cancellation, backpressure, last words, merged streams, policies.

mod cancellation;
mod failures;
mod last_words;
mod merge;
mod released;
mod run_ahead;
mod sides;
mod support;
