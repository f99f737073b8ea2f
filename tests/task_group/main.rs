//! Task groups: cancellation, backpressure, last words, merged streams, policies.

mod cancellation;
mod causes;
mod encoded;
mod failures;
mod keep_alive;
mod last_words;
mod late_failures;
mod limits;
mod merge;
mod one_response;
mod queued;
mod released;
mod run_ahead;
mod sides;
mod support;
mod trailers;
mod unpolled;
