//! When the next FLUSH is due: a client that flushes after every n writes will do so again.
//!
//! Such a client waits for a device write and then for a device flush. The write need not wait for
//! the FLUSH to come: the record is closed behind the n-th write already, and is on its way while
//! the client has yet to hear of its write. A record may be closed at any time, so an error costs
//! no more than one header block, and after one nothing is foreseen until the next two agree.

/// What the last FLUSHes had in common.
#[derive(Debug, Default)]
pub struct Foresight {
    /// Writes since the last FLUSH.
    writes: u32,
    /// Writes between the two FLUSHes before.
    interval: u32,
    /// Whether the interval before that one was as long.
    regular: bool,
}

impl Foresight {
    /// A client's write was appended.
    pub fn wrote(&mut self) {
        self.writes = self.writes.saturating_add(1);
        self.regular &= self.writes <= self.interval;
    }

    /// A client's FLUSH came.
    pub fn flushed(&mut self) {
        self.regular = self.writes == self.interval;
        self.interval = self.writes;
        self.writes = 0;
    }

    /// Whether a FLUSH is likely to come next.
    pub fn flush_is_next(&self) -> bool {
        self.regular && self.writes == self.interval && self.writes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::Foresight;

    fn cycle(foresight: &mut Foresight, writes: u32) -> Vec<bool> {
        let mut seen = Vec::new();
        for _ in 0..writes {
            foresight.wrote();
            seen.push(foresight.flush_is_next());
        }
        foresight.flushed();
        seen
    }

    #[test]
    fn regular_flushes_are_foreseen_and_others_are_not() {
        let mut foresight = Foresight::default();
        assert_eq!(cycle(&mut foresight, 3), [false; 3]);
        assert_eq!(cycle(&mut foresight, 3), [false; 3]);
        assert_eq!(cycle(&mut foresight, 3), [false, false, true]);
        // The third is foreseen in vain, and after that nothing until two agree.
        assert_eq!(cycle(&mut foresight, 5), [false, false, true, false, false]);
        assert_eq!(cycle(&mut foresight, 5), [false; 5]);
        assert_eq!(cycle(&mut foresight, 1), [false], "less than was foreseen");
        assert_eq!(cycle(&mut foresight, 1), [false]);
        assert_eq!(cycle(&mut foresight, 1), [true]);
        assert_eq!(cycle(&mut foresight, 1000).iter().filter(|seen| **seen).count(), 1);
    }

    #[test]
    fn flushes_without_writes_foresee_nothing() {
        let mut foresight = Foresight::default();
        (0..3).for_each(|_| foresight.flushed());
        assert!(!foresight.flush_is_next());
        assert_eq!(cycle(&mut foresight, 2), [false; 2]);
    }
}
