//! Whether a body stands in its head as encoded.

use http::{HeaderMap, header};

/// Whether there is a coding other than `identity` (RFC 9110, 8.4).
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONTENT_ENCODING).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(|coding| coding.trim_ascii())
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}
