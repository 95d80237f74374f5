//! Seeded mutation of valid inputs, for tests of decoders. Must not use any other source of chance.

/// Marsaglia's xorshift64*: the same seed gives the same inputs on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    /// Changes, removes, inserts or cuts at up to three places.
    pub(crate) fn mutate(&mut self, input: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(input.len());
            let byte = self.below(256) as u8;
            match self.below(8) {
                0..=2 => input[at] = byte,
                3 | 4 => drop(input.remove(at)),
                5 | 6 => input.insert(at, byte),
                _ => input.truncate(at.max(1)),
            }
            if input.is_empty() {
                input.push(byte);
            }
        }
    }
}
