//! The last bytes of plain text a stream has seen.

/// Keeps the last `most` bytes, in a buffer no larger than what it keeps.
#[derive(Debug)]
pub(super) struct History {
    bytes: Vec<u8>,
    most: usize,
}

impl History {
    pub(super) fn new(most: usize) -> Self {
        Self {
            bytes: Vec::new(),
            most,
        }
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn push(&mut self, text: &[u8]) {
        let text = &text[text.len().saturating_sub(self.most)..];
        let length = self.bytes.len() + text.len();
        if length > self.most {
            self.bytes.drain(..length - self.most);
        }
        self.bytes.shrink_to(self.most);
        self.bytes.reserve_exact(text.len());
        self.bytes.extend_from_slice(text);
    }

    /// Holds all of `text`, until more comes.
    pub(super) fn overfill(&mut self, text: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(text);
    }

    pub(super) fn replace(&mut self, text: &[u8]) {
        self.bytes.clear();
        self.push(text);
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::History;

    #[test]
    fn keeps_the_last_bytes_and_no_more_room() {
        let mut history = History::new(8);
        for (text, kept) in [
            ("", ""),
            ("abc", "abc"),
            ("defgh", "abcdefgh"),
            ("ij", "cdefghij"),
            ("0123456789", "23456789"),
            ("x", "3456789x"),
        ] {
            history.push(text.as_bytes());
            assert_eq!(history.as_slice(), kept.as_bytes());
            assert!(history.bytes.capacity() <= 8);
        }
        history.overfill(b"0123456789abc");
        assert_eq!(history.as_slice(), b"0123456789abc");
        history.push(b"d");
        assert_eq!(history.as_slice(), b"6789abcd");
        assert!(history.bytes.capacity() <= 8);
        history.replace(b"xyz");
        assert_eq!(history.as_slice(), b"xyz");
        history.replace(b"0123456789");
        assert_eq!(history.as_slice(), b"23456789");
        let mut nothing = History::new(0);
        nothing.push(b"abc");
        assert!(nothing.as_slice().is_empty());
    }
}
