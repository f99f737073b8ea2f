//! The ending detector: a pure state machine that says how a body ended.
//!
//! It is told what the inner body does and what hyper will ask next; it does no I/O and knows no
//! scope. The rules are those of `Outcome`; each was seen in a run of hyper 1.12.

use http::{HeaderMap, Method, StatusCode, Version};
use http_body::SizeHint;

use crate::{
    content_length::{self, Framing},
    outcome::Outcome,
};

/// What to do with a response at its head.
#[derive(Debug)]
pub(super) enum Head {
    /// No body will be polled: the end is now, with this outcome.
    Ended(Outcome),
    /// The body streams, watched by this detector.
    Streams(Detector),
}

/// What a frame or an end of stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// More is to come.
    More,
    /// The promised length is reached. HTTP/1 polls no further; elsewhere trailers may follow.
    LengthReached,
    /// The body is over.
    Ended(Outcome),
}

/// Counts what a body gives against what its head promised.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Detector {
    promised: Option<u64>,
    produced: u64,
    /// HTTP/1.1 sends it in chunks by its head's wish, and asks on behind the promised length.
    chunked: bool,
}

impl Detector {
    /// Reads a head. "Promised length" is the Content-Length, else the exact size hint.
    pub(super) fn at_head(
        (method, version): (&Method, Version),
        status: StatusCode,
        headers: &HeaderMap,
        hint: &SizeHint,
        end_hint: bool,
    ) -> Head {
        if !body_is_due(method, status) {
            return Head::Ended(Outcome::Complete);
        }
        let Framing { length, chunked } = Framing::of(version, headers);
        let promised = length.or_else(|| hint.exact());
        let stops = stops_at_length(version) && !chunked;
        // HTTP/1 does not poll a body of no bytes; HTTP/2 does, and may find trailers.
        let never_polled = end_hint || (hint.exact() == Some(0) && stops);
        match promised {
            Some(n) if never_polled && n > 0 => return Head::Ended(Outcome::Truncated),
            _ if never_polled => return Head::Ended(Outcome::Complete),
            Some(0) if stops => return Head::Ended(Outcome::Complete),
            _ => {}
        }
        Head::Streams(Self {
            chunked,
            ..Self::promising(promised)
        })
    }

    /// A detector for a body that promised this length, or none.
    pub(super) fn promising(promised: Option<u64>) -> Self {
        Self {
            promised,
            ..Self::default()
        }
    }

    /// The length a header promised, 0 if none.
    pub(super) fn promised_by(headers: &HeaderMap) -> u64 {
        content_length::of(headers).unwrap_or_default()
    }

    /// A data frame of `len` bytes; `end_hint` is the inner `is_end_stream()` after it.
    pub(super) fn data(&mut self, len: u64, end_hint: bool) -> Seen {
        self.produced = self.produced.saturating_add(len);
        match self.promised {
            Some(promised) if self.produced > promised => Seen::Ended(Outcome::Failed),
            Some(promised) if self.produced == promised => {
                if end_hint {
                    Seen::Ended(Outcome::Complete)
                } else {
                    Seen::LengthReached
                }
            }
            _ if end_hint => self.end_of_stream(),
            _ => Seen::More,
        }
    }

    /// Counts a data frame behind which more is to come; any other is left to [`Detector::data`].
    #[inline]
    pub(super) fn passes(&mut self, len: u64, end_hint: bool) -> bool {
        let produced = self.produced.saturating_add(len);
        let more = !end_hint && self.promised.is_none_or(|promised| produced < promised);
        if more {
            self.produced = produced;
        }
        more
    }

    /// Trailers, or `None`: no data follows.
    pub(super) fn end_of_stream(&self) -> Seen {
        Seen::Ended(match self.promised {
            Some(promised) if self.produced < promised => Outcome::Truncated,
            _ => Outcome::Complete,
        })
    }

    pub(super) fn promised(&self) -> Option<u64> {
        self.promised
    }

    pub(super) fn produced(&self) -> u64 {
        self.produced
    }

    pub(super) fn is_chunked(&self) -> bool {
        self.chunked
    }
}

/// Whether the server polls no further once the length is reached (RFC 9112 6: no trailers there), unless it
/// sends in chunks all the same.
pub(super) fn stops_at_length(version: Version) -> bool {
    version <= Version::HTTP_11
}

/// RFC 9110 6.4.1: HEAD, 1xx, 204, 304 and 2xx to CONNECT carry no content.
fn body_is_due(method: &Method, status: StatusCode) -> bool {
    !(method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || (method == Method::CONNECT && status.is_success()))
}

/// What a response says of its length that carries no content; `None` if it may.
///
/// HEAD and 304 speak of what GET would have given (RFC 9110, 8.6), of which an empty 304 knows nothing.
pub(super) fn hint_without_body(
    method: &Method,
    status: StatusCode,
    hint: SizeHint,
) -> Option<SizeHint> {
    if body_is_due(method, status) {
        return None;
    }
    let speaks = match status {
        StatusCode::NOT_MODIFIED => hint.exact() != Some(0),
        StatusCode::NO_CONTENT => false,
        status => method == Method::HEAD && !status.is_informational(),
    };
    Some(if speaks { hint } else { SizeHint::default() })
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_LENGTH;

    use super::*;

    fn head(method: Method, status: u16, length: Option<&str>, hint: SizeHint, end: bool) -> Head {
        let mut headers = HeaderMap::new();
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        Detector::at_head((&method, Version::HTTP_11), status, &headers, &hint, end)
    }

    fn streams(length: Option<&str>, hint: SizeHint) -> Detector {
        match head(Method::GET, 200, length, hint, false) {
            Head::Streams(detector) => detector,
            Head::Ended(outcome) => panic!("ended {outcome}"),
        }
    }

    #[test]
    fn no_body_is_due() {
        let cases = [
            (Method::HEAD, 200),
            (Method::GET, 101),
            (Method::GET, 204),
            (Method::GET, 304),
            (Method::CONNECT, 200),
        ];
        for (method, status) in cases {
            let seen = head(
                method.clone(),
                status,
                Some("5"),
                SizeHint::default(),
                false,
            );
            assert!(
                matches!(seen, Head::Ended(Outcome::Complete)),
                "{method} {status}: {seen:?}"
            );
        }
        assert!(matches!(
            head(Method::CONNECT, 500, None, SizeHint::default(), false),
            Head::Streams(_)
        ));
    }

    #[test]
    fn empty_bodies_end_at_the_head() {
        for (hint, end) in [
            (SizeHint::with_exact(0), false),
            (SizeHint::default(), true),
        ] {
            assert!(matches!(
                head(Method::GET, 200, None, hint, end),
                Head::Ended(Outcome::Complete)
            ));
            assert!(matches!(
                head(Method::GET, 200, Some("9"), hint, end),
                Head::Ended(Outcome::Truncated)
            ));
        }
    }

    #[test]
    fn promised_lengths_are_held_to() {
        let mut exact = streams(None, SizeHint::with_exact(4));
        assert_eq!(exact.data(3, false), Seen::More);
        assert_eq!(exact.end_of_stream(), Seen::Ended(Outcome::Truncated));
        assert_eq!(exact.data(1, false), Seen::LengthReached);
        assert_eq!(exact.end_of_stream(), Seen::Ended(Outcome::Complete));
        assert_eq!(exact.data(1, false), Seen::Ended(Outcome::Failed));

        let mut short = streams(Some("100"), SizeHint::default());
        assert_eq!(short.data(10, true), Seen::Ended(Outcome::Truncated));
        let mut whole = streams(Some("10"), SizeHint::default());
        assert_eq!(whole.data(10, true), Seen::Ended(Outcome::Complete));
    }

    #[test]
    fn unknown_lengths_end_by_hint_or_end_of_stream() {
        let mut body = streams(None, SizeHint::default());
        assert_eq!(body.data(0, false), Seen::More);
        assert_eq!(body.data(7, true), Seen::Ended(Outcome::Complete));
        assert_eq!(body.end_of_stream(), Seen::Ended(Outcome::Complete));
    }

    #[test]
    fn a_malformed_length_promises_nothing() {
        for text in ["", "+5", "5, 5", "abc", "99999999999999999999999"] {
            assert_eq!(
                streams(Some(text), SizeHint::default()).promised(),
                None,
                "{text:?}"
            );
        }
    }
}
