//! Header decisions and edits: pure functions of a head.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response::Parts};

use super::{negotiation::Coding, options::Options, predicate::compressible};
use crate::content_encoding::is_encoded;

/// A handler's word on compressing its own response: a response extension.
///
/// ```
/// # use bodyguard::compression::Compress;
/// # use http::Response;
/// let mut response = Response::new("one-time token");
/// response.extensions_mut().insert(Compress::Never);
/// ```
///
/// The layer honours it and removes it. What HTTP itself rules out (a partial or already encoded
/// response, `no-transform`, a status without content) stays ruled out under `Always`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compress {
    /// Compress whatever the size, the type and the predicate say.
    Always,
    /// Leave this response alone.
    Never,
}

/// What the layer may do with a response, whatever the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Nothing here depends on `Accept-Encoding`.
    LeaveAlone,
    /// A 304: its fields are those of the response it stands for (RFC 9110, 15.4.5), and a cache takes
    /// them over into the one it has (RFC 9111, 4.3.4).
    HeadersOnly,
    /// The content may be encoded.
    Negotiable,
}

/// Whether content is known to be too short to be worth the headers.
///
/// Not said of a 304, whose head speaks of another response's content. `only_encoded`: a client that
/// refuses the plain form.
pub(super) fn is_too_small(
    status: StatusCode,
    size: Option<u64>,
    wish: Option<Compress>,
    only_encoded: bool,
    options: &Options,
) -> bool {
    let least = match wish {
        Some(Compress::Always) => 1,
        _ if only_encoded => 1,
        _ => options.min_size.max(1),
    };
    status != StatusCode::NOT_MODIFIED && size.is_some_and(|size| size < least)
}

/// What may be done with a response that is not too small.
pub(super) fn judge(
    method: &Method,
    parts: &Parts,
    wish: Option<Compress>,
    options: &Options,
) -> Treatment {
    let status = parts.status;
    let headers = &parts.headers;
    if wish == Some(Compress::Never)
        || has_no_content(method, status)
        || status == StatusCode::PARTIAL_CONTENT
        || headers.contains_key(header::CONTENT_RANGE)
        || is_encoded(headers)
        || forbids_transform(headers)
    {
        return Treatment::LeaveAlone;
    }
    let wanted = wish == Some(Compress::Always)
        || (compressible(headers.get(header::CONTENT_TYPE))
            && options
                .predicate
                .as_ref()
                .is_none_or(|allows| allows.call(parts)));
    if !wanted {
        return Treatment::LeaveAlone;
    }
    if status == StatusCode::NOT_MODIFIED {
        return Treatment::HeadersOnly;
    }
    Treatment::Negotiable
}

/// Adds `Vary: Accept-Encoding` unless it, or `*`, is there.
pub(super) fn add_vary(headers: &mut HeaderMap) {
    let covered = |member: &[u8]| {
        member == b"*" || member.eq_ignore_ascii_case(header::ACCEPT_ENCODING.as_str().as_bytes())
    };
    if !members(headers, header::VARY).any(covered) {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// Digests of the bytes as they were.
static DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// The encoded form that a client would get, and what becomes of the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) coding: Coding,
    /// The `ETag` is that of what the target has become (RFC 9110, 8.8): to be sent back in an `If-Match`,
    /// which takes no weak one. Else it is that of the content.
    etag_of_target: bool,
}

impl Form {
    pub(super) fn new(coding: Coding, method: &Method) -> Self {
        Self {
            coding,
            // Known to change state. Of others, `is_safe` does not know PROPFIND, REPORT and SEARCH, say.
            etag_of_target: matches!(
                *method,
                Method::PUT | Method::PATCH | Method::POST | Method::DELETE
            ),
        }
    }

    /// Makes the head that of the encoded form; `length` if its size is known.
    pub(super) fn encode_head(self, headers: &mut HeaderMap, length: Option<u64>) {
        headers.insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(self.coding.as_str()),
        );
        // A length beside a transfer coding is a message nobody may send (RFC 9112, 6.2).
        let length = length.filter(|_| !headers.contains_key(header::TRANSFER_ENCODING));
        self.forget_plain(headers);
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
    }

    /// Takes out what a head says of the plain content alone.
    pub(super) fn forget_plain(self, headers: &mut HeaderMap) {
        headers.remove(header::CONTENT_LENGTH);
        // Ranges would count bytes of an encoded form that is different each time.
        headers.remove(header::ACCEPT_RANGES);
        self.encode_trailers(headers);
    }

    /// What was said of the plain content does not hold for the encoded one, wherever it is said.
    pub(super) fn encode_trailers(self, fields: &mut HeaderMap) {
        for digest in &DIGESTS {
            fields.remove(digest);
        }
        if !self.etag_of_target {
            weaken_etag(fields);
        }
    }
}

/// A strong validator promises identical bytes (RFC 9110, 8.8.1), which encoding breaks.
fn weaken_etag(headers: &mut HeaderMap) {
    let Some(strong) = headers
        .get(header::ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""))
    else {
        return;
    };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", strong.as_bytes()].concat()) {
        headers.insert(header::ETAG, weak);
    }
}

fn has_no_content(method: &Method, status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::RESET_CONTENT
        || (method == Method::CONNECT && status.is_success())
}

fn forbids_transform(headers: &HeaderMap) -> bool {
    members(headers, header::CACHE_CONTROL)
        .any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

/// The members of a comma-separated header, over all its lines.
fn members(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(|member| member.trim_ascii())
}
