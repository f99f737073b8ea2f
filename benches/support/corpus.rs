//! Texts to compress: the same on every machine.

use bytes::Bytes;

/// SplitMix64: the same numbers everywhere.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A vocabulary drawn from as words are: few often, most seldom.
pub(crate) struct Words {
    words: Vec<String>,
    random: Random,
}

impl Words {
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        const SYLLABLES: [&str; 24] = [
            "ta", "re", "in", "on", "er", "st", "al", "ti", "mo", "ne", "co", "ra", "li", "de",
            "pro", "ser", "ven", "con", "tor", "ly", "ing", "un", "ex", "ful",
        ];
        let mut random = Random(seed);
        let words = (0..count)
            .map(|_| {
                (0..1 + random.below(4))
                    .map(|_| SYLLABLES[random.below(SYLLABLES.len())])
                    .collect()
            })
            .collect();
        Self { words, random }
    }

    pub(crate) fn word(&mut self) -> &str {
        // Log-uniform ranks: Zipf's law near enough.
        let rank =
            (self.words.len() as f64).powf(self.random.below(1 << 20) as f64 / (1 << 20) as f64);
        &self.words[rank as usize - 1]
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    pub(crate) fn sentence(&mut self, words: usize) -> String {
        let words: Vec<_> = (0..words).map(|_| self.word().to_owned()).collect();
        words.join(" ")
    }
}

/// Prose: words, sentences, paragraphs.
pub(crate) fn prose(bytes: usize) -> Vec<u8> {
    let mut words = Words::new(1, 8000);
    let mut text = String::with_capacity(bytes + 200);
    while text.len() < bytes {
        let length = 4 + words.below(16);
        text.push_str(&words.sentence(length));
        text.push_str(if words.below(6) == 0 { ".\n\n" } else { ". " });
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// Rows of JSON as an API gives them.
pub(crate) fn json(bytes: usize) -> Vec<u8> {
    let mut words = Words::new(2, 2000);
    let mut text = String::with_capacity(bytes + 400);
    while text.len() < bytes {
        let (id, cents) = (words.below(1 << 30), words.below(100_000));
        let (name, note) = (words.sentence(2), words.sentence(9));
        text.push_str(&format!(
            "{{\"id\":{id},\"name\":\"{name}\",\"price\":{}.{:02},\"active\":{},\"note\":\"{note}\"}},\n",
            cents / 100,
            cents % 100,
            id % 3 == 0,
        ));
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// `text` cut into ready chunks.
pub(crate) fn chunks(text: &Bytes, size: usize) -> Vec<Bytes> {
    let mut rest = text.clone();
    let mut chunks = Vec::with_capacity(text.len() / size + 1);
    while !rest.is_empty() {
        chunks.push(rest.split_to(size.min(rest.len())));
    }
    chunks
}
