//! What a `Content-Length` promises.

use http::{HeaderMap, Version, header};

/// The length a head promises; none if the header is not one plain number (RFC 9110, 8.6).
pub(crate) fn of(headers: &HeaderMap) -> Option<u64> {
    match headers.get(header::CONTENT_LENGTH)?.as_bytes().trim_ascii() {
        [] => None,
        digits => digits.iter().try_fold(0_u64, |length, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            length.checked_mul(10)?.checked_add(digit)
        }),
    }
}

/// Whether HTTP/1.1 sends a body in chunks by the wish of its head, which has no `length`: whatever size it hints at, it is
/// asked on behind its last byte, and may have trailers (RFC 9112, 7.1).
pub(crate) fn is_chunked(version: Version, length: Option<u64>, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && length.is_none()
        && headers.contains_key(header::TRANSFER_ENCODING)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(text: &[u8]) -> Option<u64> {
        let value = HeaderValue::from_bytes(text).expect("a header value");
        of(&HeaderMap::from_iter([(header::CONTENT_LENGTH, value)]))
    }

    #[test]
    fn plain_numbers() {
        assert_eq!(read(b"0"), Some(0));
        assert_eq!(read(b"0042"), Some(42));
        assert_eq!(read(b" 7\t"), Some(7));
        assert_eq!(read(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(of(&HeaderMap::new()), None);
    }

    #[test]
    fn anything_else_promises_nothing() {
        let texts: [&[u8]; 8] = [
            b"",
            b" ",
            b"+5",
            b"-5",
            b"5, 5",
            b"5 5",
            b"\xff5",
            b"18446744073709551616",
        ];
        for text in texts {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
