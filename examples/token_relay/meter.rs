//! Counts tokens in an event stream that passes by in pieces of any size.

/// What has been seen of one answer.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    line: Vec<u8>,
    tokens: u64,
    done: bool,
}

impl Meter {
    /// Looks at the next piece; gives how many tokens have passed in whole since the start.
    pub(crate) fn read(&mut self, piece: &[u8]) -> u64 {
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(line);
            if !self.line.ends_with(b"\n") {
                break;
            }
            match self.line.trim_ascii_end() {
                b"data: [DONE]" => self.done = true,
                line if line.starts_with(b"data: {\"token\":") => self.tokens += 1,
                _ => {}
            }
            self.line.clear();
        }
        self.tokens
    }

    /// Whether the upstream has said that this was all.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}
