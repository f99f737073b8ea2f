//! What a `Content-Length` promises.

use http::{HeaderMap, header};

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
