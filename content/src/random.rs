//! Numbers that differ from node to node out of a seed of the caller's (SplitMix64): for spreading, never for secrets.

use core::time::Duration;

/// A generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    /// Half of a time to one and a half of it.
    pub fn around(&mut self, time: Duration) -> Duration {
        let micros = time.as_micros() as u64;
        Duration::from_micros(micros / 2 + self.below(micros + 1))
    }
}
