//! `Accept-Encoding` (RFC 9110, 12.5.3), as a pure function of its header lines.

/// A content coding this module can produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Coding {
    /// `gzip` (RFC 1952); `x-gzip` in a request means the same.
    Gzip,
    /// `br` (RFC 7932), with the feature `br`.
    Brotli,
    /// `zstd` (RFC 8878), with the feature `zstd`.
    Zstd,
    /// `deflate`, which in HTTP is the zlib format (RFC 1950), with the feature `deflate`.
    Deflate,
}

impl Coding {
    const COUNT: usize = 4;

    /// The coding's name in `Content-Encoding`.
    pub fn as_str(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
            Coding::Deflate => "deflate",
        }
    }
}

/// What the server should send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Encode(Coding),
    Identity,
    /// The client accepts neither an enabled coding nor the plain representation.
    Nothing,
}

/// Weight in thousandths, as far as the client stated one.
type Weight = Option<u16>;

/// The sane members of the request's `Accept-Encoding` lines.
///
/// A coding named twice counts with its highest weight. One pass, fixed memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    codings: [Weight; Coding::COUNT],
    identity: Weight,
    any: Weight,
}

impl Accepted {
    pub(super) fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut accepted = Self::default();
        for member in lines
            .into_iter()
            .flat_map(|line| line.split(|b| *b == b','))
        {
            let Some((name, weight)) = parse_member(member) else {
                continue;
            };
            if let Some(slot) = accepted.slot(name) {
                *slot = (*slot).max(Some(weight));
            }
        }
        accepted
    }

    /// The best enabled coding; `preference` lists them, best first, and settles equal weights.
    pub(super) fn choose(&self, preference: &[Coding]) -> Choice {
        let mut best = None;
        for &coding in preference {
            let weight = self.codings[coding as usize].or(self.any).unwrap_or(0);
            if weight > 0 && best.is_none_or(|(_, heaviest)| weight > heaviest) {
                best = Some((coding, weight));
            }
        }
        match best {
            // `*` names no preference for the plain form, an explicit `identity` may.
            Some((coding, weight)) if weight >= self.identity.unwrap_or(0) => {
                Choice::Encode(coding)
            }
            _ if !self.refuses_identity() => Choice::Identity,
            // Unreachable with a candidate: its weight is not below an identity of zero.
            _ => Choice::Nothing,
        }
    }

    /// Whether the client refuses the plain form: `identity;q=0`, or `*;q=0` without a word on it.
    pub(super) fn refuses_identity(&self) -> bool {
        self.identity.or(self.any) == Some(0)
    }

    fn slot(&mut self, name: &[u8]) -> Option<&mut Weight> {
        let coding = if is(name, "gzip") || is(name, "x-gzip") {
            Coding::Gzip
        } else if is(name, "br") {
            Coding::Brotli
        } else if is(name, "zstd") {
            Coding::Zstd
        } else if is(name, "deflate") {
            Coding::Deflate
        } else if is(name, "identity") {
            return Some(&mut self.identity);
        } else if name == b"*" {
            return Some(&mut self.any);
        } else {
            return None;
        };
        Some(&mut self.codings[coding as usize])
    }
}

fn is(name: &[u8], known: &str) -> bool {
    name.eq_ignore_ascii_case(known.as_bytes())
}

/// `codings [ OWS ";" OWS "q=" qvalue ]`; anything else is no member.
fn parse_member(member: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = member.splitn(2, |b| *b == b';');
    let name = trim(parts.next()?);
    let weight = match parts.next() {
        None => 1000,
        Some(parameter) => match trim(parameter) {
            [b'q' | b'Q', b'=', value @ ..] => parse_weight(value)?,
            _ => return None,
        },
    };
    Some((name, weight))
}

/// `( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )` in thousandths.
fn parse_weight(value: &[u8]) -> Option<u16> {
    let (whole, digits) = match value {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', digits @ ..] if digits.len() <= 3 => (whole, digits),
        _ => return None,
    };
    let mut thousandths = u16::from(whole - b'0') * 1000;
    for (digit, unit) in digits.iter().zip([100, 10, 1]) {
        if !digit.is_ascii_digit() {
            return None;
        }
        thousandths += u16::from(digit - b'0') * unit;
    }
    (thousandths <= 1000).then_some(thousandths)
}

/// Without optional white space (RFC 9110, 5.6.3: spaces and tabs).
fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |b: &u8| !matches!(b, b' ' | b'\t');
    match (bytes.iter().position(blank), bytes.iter().rposition(blank)) {
        (Some(first), Some(last)) => &bytes[first..=last],
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
