//! SplitMix64: enough to spread speakers in time and to choose peers. Must never make a key or a token.

/// A stream of numbers that its seed decides.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The remainder favours small numbers by less than 2^-32 for any table that fits in memory.
        usize::try_from(self.draw() >> 1).unwrap_or(0) % bound.max(1)
    }

    /// 7/8 to 9/8 of `mean`, so that a room switched on together does not speak in chorus.
    pub fn around(&mut self, mean: core::time::Duration) -> core::time::Duration {
        mean * (896 + self.below(257) as u32) / 1024
    }
}

/// SplitMix64's finaliser: every input bit reaches every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
