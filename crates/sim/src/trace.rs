//! What a world did: always as a digest, and as text when somebody wants to read it.

/// The record of a world.
#[derive(Clone, Debug)]
pub struct Trace {
    digest: u64,
    sink: Sink,
}

/// Where the text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere: the digest is all that is kept.
    Digest,
    /// To standard output, as it happens.
    Print,
}

impl Trace {
    /// An empty record.
    #[must_use]
    pub fn new(sink: Sink) -> Self {
        Self { digest: 0xcbf2_9ce4_8422_2325, sink }
    }

    /// Adds a number to the digest.
    pub fn mix(&mut self, word: u64) {
        let mixed = (self.digest ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25);
        self.digest = mixed ^ (mixed >> 32);
    }

    /// Adds a line to the text, if it is wanted.
    pub fn line(&mut self, now_ns: u64, text: impl FnOnce() -> String) {
        if self.sink == Sink::Print {
            println!("{:>14.6} ms  {}", now_ns as f64 / 1e6, text());
        }
    }

    /// The digest of everything so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }
}
