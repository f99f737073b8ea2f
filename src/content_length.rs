//! What a `Content-Length` promises.

use http::{HeaderMap, HeaderValue, Version, header};

/// What a head says of its body's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    /// What the header promises; none if it is not one plain number (RFC 9110, 8.6).
    pub(crate) length: Option<u64>,
    /// HTTP/1.1 sends it in chunks by the wish of its head, which has no length: whatever size it hints at, it is
    /// asked on behind its last byte, and may have trailers (RFC 9112, 7.1).
    pub(crate) chunked: bool,
}

impl Framing {
    /// One look through the headers: most heads are short, and two searches by hash cost more.
    pub(crate) fn of(version: Version, headers: &HeaderMap) -> Self {
        let (mut length, mut encoded) = (None, false);
        for (name, value) in headers {
            if *name == header::CONTENT_LENGTH {
                length.get_or_insert(value);
            } else if *name == header::TRANSFER_ENCODING {
                encoded = true;
            }
        }
        let length = length.and_then(number);
        Self {
            length,
            chunked: encoded && length.is_none() && version == Version::HTTP_11,
        }
    }
}

/// The length a head promises.
pub(crate) fn of(headers: &HeaderMap) -> Option<u64> {
    number(headers.get(header::CONTENT_LENGTH)?)
}

fn number(value: &HeaderValue) -> Option<u64> {
    match value.as_bytes().trim_ascii() {
        [] => None,
        digits => digits.iter().try_fold(0_u64, |length, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            length.checked_mul(10)?.checked_add(digit)
        }),
    }
}

#[cfg(test)]
mod tests {
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

    fn framing(version: Version, head: &[(&'static str, &'static str)]) -> Framing {
        let head = head.iter().map(|&(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        let mut headers = HeaderMap::new();
        head.for_each(|(name, value)| {
            headers.append(name, value);
        });
        Framing::of(version, &headers)
    }

    #[test]
    fn the_first_length_counts_and_wins_over_chunks() {
        let plain = ("x-other", "1");
        let (five, six) = (("content-length", "5"), ("content-length", "6"));
        let (bad, chunks) = (("content-length", "x"), ("transfer-encoding", "chunked"));
        let cases: [(&[_], _, _); 7] = [
            (&[], None, false),
            (&[plain], None, false),
            (&[plain, five, six], Some(5), false),
            (&[chunks, five], Some(5), false),
            (&[plain, chunks], None, true),
            (&[bad, chunks], None, true),
            (&[bad, five], None, false),
        ];
        for (head, length, chunked) in cases {
            let seen = framing(Version::HTTP_11, head);
            assert_eq!(seen, Framing { length, chunked }, "{head:?}");
            for version in [Version::HTTP_10, Version::HTTP_2] {
                let seen = framing(version, head);
                let chunked = false;
                assert_eq!(seen, Framing { length, chunked }, "{head:?}");
            }
        }
    }
}
