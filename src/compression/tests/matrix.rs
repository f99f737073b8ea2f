//! Every combination of head against one table.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Either, Full};

use super::{
    answer, drain, gunzip, layer,
    script::{Script, data},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    Small,
    Large,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    None,
    NoTransform,
    ContentRange,
    Digests,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Do {
    /// Pass on, headers and all.
    Nothing,
    /// `Vary`; and if the client would get gzip, a weak ETag and nothing that is true of the plain form
    /// only. A cache takes the fields of a 304 over into the gzip that it has (RFC 9111, 4.3.4). A
    /// length there has to be the 200's, and none has to be there (RFC 9110, 8.6 and 15.4.5), so this holds
    /// also where the 200 would have been left plain.
    HeadersOnly,
    /// gzip with its exact length.
    Whole,
    /// gzip without a length.
    Stream,
    /// The headers of gzip, no length, no body.
    Head,
}

const ANY_STATUS: u16 = 0;

type Row = (u16, Option<Method>, Option<Size>, Option<Mark>, Do);

/// The table: the first row that matches says what happens to a client that accepts gzip. One that
/// does not gets the plain form, with `Vary` in all but the `Nothing` rows (RFC 9110, 12.5.5).
#[rustfmt::skip]
const TABLE: &[Row] = &[
    // status      method              size                 mark                      does             RFC 9110
    (101,        None,               None,                None,                     Do::Nothing),     // 15.2: no content
    (204,        None,               None,                None,                     Do::Nothing),     // 15.3.5: no content
    (205,        None,               None,                None,                     Do::Nothing),     // 15.3.6: no content
    (206,        None,               None,                None,                     Do::Nothing),     // 15.3.7: ranges of another form
    (ANY_STATUS, None,               None,                Some(Mark::NoTransform),  Do::Nothing),     // 7.7
    (ANY_STATUS, None,               None,                Some(Mark::ContentRange), Do::Nothing),     // 14.4
    (304,        None,               None,                None,                     Do::HeadersOnly), // 15.4.5: the 200's fields
    (ANY_STATUS, None,               Some(Size::Small),   None,                     Do::Nothing),     // would not shrink
    (ANY_STATUS, Some(Method::HEAD), None,                None,                     Do::Head),        // 9.3.2: length may be omitted
    (ANY_STATUS, None,               Some(Size::Large),   None,                     Do::Whole),       // 8.6: length of what is sent
    (ANY_STATUS, None,               Some(Size::Unknown), None,                     Do::Stream),
];

/// `Accept-Encoding`, and whether it gets gzip (RFC 9110, 12.5.3).
const ACCEPT: &[(Option<&str>, Gzip)] = &[
    (None, Gzip::No),
    (Some(""), Gzip::No),
    (Some("gzip"), Gzip::Yes),
    (Some("x-gzip;q=0.5, br"), Gzip::Yes),
    (Some("*"), Gzip::Yes),
    (Some("gzip;q=0"), Gzip::No),
    (Some("*, gzip;q=0"), Gzip::No),
    (Some("identity, gzip;q=0.5"), Gzip::No),
    (Some("identity;q=0, gzip;q=0.001"), Gzip::Always),
    (Some("gzip, *;q=0"), Gzip::Always),
    (Some("gzip, *;q=0, identity;q=0.1"), Gzip::Yes),
    (Some("deflate, \"nonsense, gzip;q=oops"), Gzip::No),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Gzip {
    No,
    Yes,
    /// The plain form is refused: no size is too small.
    Always,
}

const ETAGS: &[Option<&str>] = &[None, Some("\"v1\""), Some("W/\"v1\"")];
const VARIES: &[Option<&str>] = &[None, Some("origin"), Some("*"), Some("x, Accept-ENCODING")];
const DIGESTS: &[&str] = &["content-md5", "digest", "content-digest", "repr-digest"];

#[test]
fn headers_of_every_combination() {
    let mut combinations = 0;
    for method in [Method::GET, Method::HEAD] {
        for status in [200, 204, 205, 206, 304, 404, 101] {
            for size in [Size::Small, Size::Large, Size::Unknown] {
                for mark in [
                    Mark::None,
                    Mark::NoTransform,
                    Mark::ContentRange,
                    Mark::Digests,
                ] {
                    for (accept, gzip) in ACCEPT {
                        let counts_as = match (gzip, size) {
                            (Gzip::Always, Size::Small) => Size::Large,
                            _ => size,
                        };
                        let row = TABLE.iter().find(|row| {
                            [ANY_STATUS, status].contains(&row.0)
                                && row.1.as_ref().is_none_or(|m| *m == method)
                                && row.2.is_none_or(|s| s == counts_as)
                                && row.3.is_none_or(|m| m == mark)
                        });
                        let does = row.expect("the table is total").4;
                        let gzip = *gzip != Gzip::No;
                        for etag in ETAGS {
                            for vary in VARIES {
                                check(&method, status, size, mark, accept, etag, vary, does, gzip);
                                combinations += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 2 * 7 * 3 * 4 * 12 * 3 * 4);
}

#[expect(clippy::too_many_arguments, reason = "the dimensions of the matrix")]
fn check(
    method: &Method,
    status: u16,
    size: Size,
    mark: Mark,
    accept: &Option<&str>,
    etag: &Option<&str>,
    vary: &Option<&str>,
    does: Do,
    gzip: bool,
) {
    let case = format!("{method} {status} {size:?} {mark:?} {accept:?} {etag:?} {vary:?}");
    let text = match size {
        Size::Small => vec![b'x'; 50],
        _ => b"a line of text\n".repeat(100),
    };
    let before = head(status, &text, size, mark, etag, vary);
    let body = match size {
        Size::Unknown => Either::Left(Script::new([data(text.clone())])),
        _ => Either::Right(Full::new(Bytes::from(text.clone()))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = before.clone();
    let mut request = Request::builder().method(method);
    if let Some(accept) = accept {
        request = request.header("accept-encoding", *accept);
    }
    let response = answer(&layer(), request.body(()).unwrap(), response);

    let mut expected = before;
    if does != Do::Nothing && !matches!(vary, Some("*" | "x, Accept-ENCODING")) {
        expected.append("vary", HeaderValue::from_static("accept-encoding"));
    }
    if gzip && does != Do::Nothing && *etag == Some("\"v1\"") {
        expected.insert("etag", HeaderValue::from_static("W/\"v1\""));
    }
    let encoded = gzip && matches!(does, Do::Whole | Do::Stream | Do::Head);
    if encoded {
        expected.insert("content-encoding", HeaderValue::from_static("gzip"));
    }
    if gzip && does != Do::Nothing {
        for gone in DIGESTS.iter().chain(&["accept-ranges", "content-length"]) {
            expected.remove(*gone);
        }
    }
    let (parts, body) = response.into_parts();
    let mut headers = parts.headers;
    if encoded && does == Do::Whole {
        let length = headers.remove("content-length").expect("a length");
        assert_eq!(
            body.size_hint().exact(),
            length.to_str().unwrap().parse().ok(),
            "{case}"
        );
    } else if encoded {
        assert_eq!(body.size_hint().exact(), None, "{case}");
    }
    assert_eq!(sorted(&headers), sorted(&expected), "{case}");

    if encoded && does == Do::Head {
        assert!(body.is_end_stream(), "{case}");
        assert!(drain(body).wire.is_empty(), "{case}");
    } else if encoded {
        assert_eq!(gunzip(&drain(body).wire), text, "{case}");
    } else {
        assert_eq!(drain(body).wire, text, "{case}");
    }
}

fn head(
    status: u16,
    text: &[u8],
    size: Size,
    mark: Mark,
    etag: &Option<&str>,
    vary: &Option<&str>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &str| {
        headers.insert(name, value.parse().unwrap());
    };
    set("content-type", "text/plain");
    set("accept-ranges", "bytes");
    set("x-other", "kept");
    if size != Size::Unknown && status != 101 && status != 204 {
        set("content-length", &text.len().to_string());
    }
    match mark {
        Mark::None => {}
        Mark::NoTransform => set("cache-control", "public, No-Transform"),
        Mark::ContentRange => set("content-range", "bytes 0-9/100"),
        Mark::Digests => DIGESTS.iter().for_each(|name| set(name, "sum")),
    }
    if let Some(etag) = etag {
        set("etag", etag);
    }
    if let Some(vary) = vary {
        set("vary", vary);
    }
    headers
}

fn sorted(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    lines.sort();
    lines
}

#[test]
fn content_that_is_encoded_already_is_left_alone() {
    for (coding, encoded) in [
        ("br", false),
        ("identity, br", false),
        ("identity", true),
        ("", true),
    ] {
        let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; 1000])));
        response
            .headers_mut()
            .insert("content-encoding", coding.parse().unwrap());
        let request = Request::builder()
            .header("accept-encoding", "gzip")
            .body(())
            .unwrap();
        let response = answer(&layer(), request, response);
        let expected = if encoded { "gzip" } else { coding };
        assert_eq!(response.headers()["content-encoding"], expected);
        assert_eq!(
            response
                .headers()
                .get_all("content-encoding")
                .iter()
                .count(),
            1
        );
        assert_eq!(response.headers().contains_key("vary"), encoded);
    }
}

#[test]
fn a_head_response_without_a_body_of_its_own_is_of_unknown_size() {
    let request = Request::builder()
        .method(Method::HEAD)
        .header("accept-encoding", "gzip")
        .body(())
        .unwrap();
    let empty = http_body_util::Empty::<Bytes>::new().map_err(|never| match never {});
    let response = answer(
        &layer(),
        request,
        Response::new(empty.map_err(|never: std::io::Error| never)),
    );
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.body().size_hint().exact(), None);
}

#[test]
fn an_empty_body_stays_empty() {
    let request = Request::builder()
        .header("accept-encoding", "gzip")
        .body(())
        .unwrap();
    let response = answer(
        &layer().min_size(0),
        request,
        Response::new(Full::<Bytes>::default()),
    );
    assert!(!response.headers().contains_key("content-encoding"));
    assert!(response.body().is_end_stream());
}

#[test]
fn a_connect_tunnel_is_left_alone() {
    let request = Request::builder()
        .method(Method::CONNECT)
        .header("accept-encoding", "gzip")
        .body(())
        .unwrap();
    let response = answer(&layer(), request, Response::new(Script::new([])));
    assert!(!response.headers().contains_key("content-encoding"));
}
