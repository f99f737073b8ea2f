//! Which content types are worth compressing.

use http::HeaderValue;

/// False for types whose bytes are compressed already. No type at all counts as text.
pub(super) fn compressible(content_type: Option<&HeaderValue>) -> bool {
    let Some(value) = content_type else {
        return true;
    };
    let essence = value.as_bytes().split(|b| *b == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    let Some(slash) = essence.iter().position(|b| *b == b'/') else {
        return true;
    };
    let (kind, subtype) = (&essence[..slash], &essence[slash + 1..]);
    if is(kind, "text") {
        true
    } else if is(kind, "application") {
        !is_packed(subtype)
    } else if is(kind, "image") {
        UNPACKED_IMAGES.iter().any(|name| is(subtype, name))
    } else if is(kind, "font") {
        !is(subtype, "woff") && !is(subtype, "woff2")
    } else {
        !is(kind, "audio") && !is(kind, "video")
    }
}

fn is(name: &[u8], known: &str) -> bool {
    name.eq_ignore_ascii_case(known.as_bytes())
}

/// Archives, packed fonts, and gRPC, whose messages have a compression of their own.
fn is_packed(subtype: &[u8]) -> bool {
    let (start, rest) = subtype.split_at(subtype.len().min(4));
    let grpc = is(start, "grpc") && (rest.is_empty() || rest[0] == b'+');
    grpc || PACKED.iter().any(|name| is(subtype, name))
}

const UNPACKED_IMAGES: [&str; 4] = ["svg+xml", "bmp", "x-bmp", "x-ms-bmp"];

const PACKED: [&str; 24] = [
    "zip",
    "gzip",
    "x-gzip",
    "x-tgz",
    "x-gtar",
    "x-bzip",
    "x-bzip2",
    "x-xz",
    "x-lzma",
    "x-lzip",
    "x-lz4",
    "x-compress",
    "x-zip-compressed",
    "zstd",
    "x-7z-compressed",
    "vnd.rar",
    "x-rar-compressed",
    "java-archive",
    "vnd.android.package-archive",
    "epub+zip",
    "font-woff",
    "font-woff2",
    "x-font-woff",
    "x-font-woff2",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_types_are_left_alone() {
        for (content_type, expected) in [
            ("text/html; charset=utf-8", true),
            ("text/event-stream", true),
            ("application/json", true),
            ("image/svg+xml", true),
            ("image/bmp", true),
            ("font/ttf", true),
            ("application/grpc-web+proto", true),
            ("application/grpc-web-text", true),
            ("nonsense", true),
            ("image/png", false),
            ("IMAGE/JPEG;q=1", false),
            ("audio/mpeg", false),
            ("video/mp4", false),
            (" application/zip ", false),
            ("application/x-7z-compressed", false),
            ("font/woff2", false),
            ("application/font-woff", false),
            ("application/grpc", false),
            ("application/grpc+proto", false),
        ] {
            let value = HeaderValue::from_static(content_type);
            assert_eq!(compressible(Some(&value)), expected, "{content_type}");
        }
        assert!(compressible(None));
        assert!(compressible(Some(
            &HeaderValue::from_bytes(b"text/\xff").unwrap()
        )));
    }
}
