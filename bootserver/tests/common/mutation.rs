//! Seeded mutation of valid inputs. No other source of chance.

use std::ops::Range;

/// Marsaglia's xorshift64*: the same seed gives the same inputs on every machine.
pub struct Random(u64);

/// What new bytes are like.
#[derive(Clone, Copy)]
pub enum Alphabet {
    /// Anything.
    Bytes,
    /// Printable ASCII but for one in sixteen.
    MostlyText,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    fn byte(&mut self, alphabet: Alphabet) -> u8 {
        let byte = match (alphabet, self.below(16)) {
            (Alphabet::Bytes, _) | (Alphabet::MostlyText, 0) => self.below(256),
            (Alphabet::MostlyText, _) => 0x21 + self.below(0x5e),
        };
        u8::try_from(byte).expect("below 256")
    }

    /// Changes, removes, repeats or inserts at one to three places within `where_to`, or cuts the end off.
    pub fn mutate(&mut self, input: &mut Vec<u8>, where_to: Range<usize>, alphabet: Alphabet) {
        for _ in 0..=self.below(3) {
            let end = where_to.end.min(input.len());
            let at = where_to.start.min(end) + self.below(end.saturating_sub(where_to.start));
            let byte = self.byte(alphabet);
            match self.below(32) {
                0..=19 if at < end => input[at] = byte,
                20..=23 if at < end => drop(input.remove(at)),
                24..=27 => input.insert(at, byte),
                28..=30 => {
                    // A piece of itself once more: options twice, folders twice.
                    let length = self.below(end.saturating_sub(at).min(24));
                    let piece = input[at..at + length].to_vec();
                    input.splice(at..at, piece);
                }
                31 => input.truncate(at),
                _ => input.push(byte),
            }
        }
    }
}
