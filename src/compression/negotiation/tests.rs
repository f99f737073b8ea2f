use super::{Accepted, Choice, Coding};

const GZIP: Choice = Choice::Encode(Coding::Gzip);
const BR: Choice = Choice::Encode(Coding::Brotli);

fn choose(lines: &[&[u8]], preference: &[Coding]) -> Choice {
    Accepted::parse(lines.iter().copied()).choose(preference)
}

fn gzip_only(line: &str) -> Choice {
    choose(&[line.as_bytes()], &[Coding::Gzip])
}

#[test]
fn one_coding_offered() {
    for (line, expected) in [
        ("gzip", GZIP),
        ("GZip", GZIP),
        ("x-gzip", GZIP),
        ("X-GZIP;Q=1.000", GZIP),
        (" \tgzip\t ", GZIP),
        ("gzip ; q=0.001", GZIP),
        ("deflate, gzip;q=1.0, *;q=0.5", GZIP),
        ("*", GZIP),
        ("*;q=0.1", GZIP),
        (",,, ,gzip,", GZIP),
        ("gzip;q=0.5, identity;q=0.5", GZIP),
        ("identity;q=0, gzip;q=0.1", GZIP),
        ("gzip;q=0.5, *;q=1", GZIP),
        ("gzip;q=0.2, x-gzip;q=0.7, identity;q=0.5", GZIP),
        ("", Choice::Identity),
        ("br", Choice::Identity),
        ("gzipped", Choice::Identity),
        ("gzip;q=0", Choice::Identity),
        ("gzip;q=0.000", Choice::Identity),
        ("*, gzip;q=0", Choice::Identity),
        ("gzip;q=0.5, identity", Choice::Identity),
        ("gzip;q=0.5, identity;q=0.501", Choice::Identity),
        ("identity", Choice::Identity),
        ("*;q=0, identity;q=0.1", Choice::Identity),
        ("identity;q=0", Choice::Nothing),
        ("*;q=0", Choice::Nothing),
        ("br, *;q=0", Choice::Nothing),
        ("gzip;q=0, identity;q=0", Choice::Nothing),
    ] {
        assert_eq!(gzip_only(line), expected, "{line:?}");
    }
}

#[test]
fn malformed_members_are_ignored_and_the_rest_counts() {
    for bad in [
        "gzip;q=1.001",
        "gzip;q=2",
        "gzip;q=-1",
        "gzip;q=0.1234",
        "gzip;q=",
        "gzip;q",
        "gzip;",
        "gzip;;q=1",
        "gzip;q=0.3;x=1",
        "gzip;x=1;q=0.3",
        "gzip;q =1",
        "gzip;q=1,5e3",
        "gzip q=1",
        "gzip/1",
    ] {
        // "gzip;q=1,5e3" is two members, the first of them sane.
        let expected = if bad.starts_with("gzip;q=1,") {
            GZIP
        } else {
            Choice::Identity
        };
        assert_eq!(gzip_only(bad), expected, "{bad:?}");
        assert_eq!(gzip_only(&format!("{bad}, gzip;q=0.1")), GZIP, "{bad:?}");
    }
}

#[test]
fn several_lines_are_one_list() {
    let both = &[Coding::Brotli, Coding::Gzip][..];
    assert_eq!(choose(&[b"identity;q=0.1", b"gzip"], both), GZIP);
    assert_eq!(choose(&[b"gzip", b"br"], both), BR);
    assert_eq!(choose(&[], both), Choice::Identity);
}

#[test]
fn preference_settles_equal_weights_only() {
    let br_first = &[Coding::Brotli, Coding::Gzip][..];
    let gzip_first = &[Coding::Gzip, Coding::Brotli][..];
    assert_eq!(choose(&[b"gzip, br"], br_first), BR);
    assert_eq!(choose(&[b"gzip, br"], gzip_first), GZIP);
    assert_eq!(choose(&[b"gzip, br;q=0.9"], br_first), GZIP);
    assert_eq!(choose(&[b"*, gzip;q=0.5"], gzip_first), BR);
}

#[test]
fn hostile_headers_cost_one_pass() {
    let mut line = b"\xff\xfe;q=\x80, ".repeat(10_000);
    line.extend_from_slice(b"gzip;q=0.5");
    assert_eq!(choose(&[&line], &[Coding::Gzip]), GZIP);

    let long = vec![b'a'; 64 << 10];
    assert_eq!(choose(&[&long, b"gzip"], &[Coding::Gzip]), GZIP);

    let parameters = [b"gzip".as_slice(), &b";".repeat(64 << 10)].concat();
    assert_eq!(choose(&[&parameters], &[Coding::Gzip]), Choice::Identity);

    let spaces = [&b" ".repeat(64 << 10)[..], b"gzip", &b"\t".repeat(1000)].concat();
    assert_eq!(choose(&[&spaces], &[Coding::Gzip]), GZIP);
}
