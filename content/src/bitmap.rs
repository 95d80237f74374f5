//! Which chunks somebody has: one bit each, the first chunk in the highest bit of the first byte. Bits behind the last chunk are
//! zero, so that what somebody has is told in one way only. Must never grow with what a peer says: its length is the image's.

use crate::tree::MAX_CHUNKS;

/// A set of chunks of one image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    bits: Vec<u8>,
    chunks: u32,
    count: u32,
}

/// Bytes are not a set of that many chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a set of {chunks} chunks")]
pub struct NotABitmap {
    /// How many the image has.
    pub chunks: u32,
}

impl Bitmap {
    /// None of this many; at most [`MAX_CHUNKS`].
    pub fn none(chunks: u32) -> Self {
        let chunks = chunks.min(MAX_CHUNKS);
        Self {
            bits: vec![0; chunks.div_ceil(8) as usize],
            chunks,
            count: 0,
        }
    }

    /// All of this many.
    pub fn all(chunks: u32) -> Self {
        let mut all = Self::none(chunks);
        for chunk in 0..all.chunks {
            all.insert(chunk);
        }
        all
    }

    /// Reads [`Bitmap::as_bytes`] of an image of `chunks` chunks back.
    ///
    /// # Errors
    /// [`NotABitmap`] when the length is another, or a bit is set for a chunk that does not exist.
    pub fn decode(bytes: &[u8], chunks: u32) -> Result<Self, NotABitmap> {
        let refused = Err(NotABitmap { chunks });
        if chunks > MAX_CHUNKS || bytes.len() != chunks.div_ceil(8) as usize {
            return refused;
        }
        let unused = (8 - chunks % 8) % 8;
        if bytes
            .last()
            .is_some_and(|last| last & ((1_u8 << unused) - 1) != 0)
        {
            return refused;
        }
        Ok(Self {
            bits: bytes.to_vec(),
            chunks,
            count: bytes.iter().map(|byte| byte.count_ones()).sum(),
        })
    }

    /// As it travels.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// How many chunks the image has.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// How many are in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether none is missing.
    pub fn is_full(&self) -> bool {
        self.count == self.chunks
    }

    /// Whether `chunk` is in it.
    pub fn contains(&self, chunk: u32) -> bool {
        let bit = 0x80 >> (chunk % 8);
        chunk < self.chunks
            && self
                .bits
                .get((chunk / 8) as usize)
                .is_some_and(|byte| byte & bit != 0)
    }

    /// Adds `chunk`; false when it was in already, or does not exist.
    pub fn insert(&mut self, chunk: u32) -> bool {
        if chunk >= self.chunks || self.contains(chunk) {
            return false;
        }
        if let Some(byte) = self.bits.get_mut((chunk / 8) as usize) {
            *byte |= 0x80 >> (chunk % 8);
            self.count += 1;
        }
        true
    }

    /// Takes `chunk` out; false when it was not in.
    pub fn remove(&mut self, chunk: u32) -> bool {
        if !self.contains(chunk) {
            return false;
        }
        if let Some(byte) = self.bits.get_mut((chunk / 8) as usize) {
            *byte &= !(0x80 >> (chunk % 8));
            self.count -= 1;
        }
        true
    }

    /// The chunks in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.chunks).filter(|chunk| self.contains(*chunk))
    }

    /// The chunks that are in it and in neither of the others, in order.
    pub fn without<'a>(&'a self, one: &'a Self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        let bytes = self.bits.iter().zip(&one.bits).zip(&other.bits);
        let left = bytes.map(|((mine, one), other)| mine & !one & !other);
        left.zip(0_u32..).filter(|(byte, _)| *byte != 0).flat_map(bits_of)
    }

    /// The chunks that are in one of the two only, and whether that is the other one.
    pub fn changes<'a>(&'a self, new: &'a Self) -> impl Iterator<Item = (u32, bool)> + 'a {
        let bytes = self.bits.iter().zip(&new.bits).map(|(old, new)| old ^ new);
        let changed = bytes
            .zip(0_u32..)
            .filter(|(byte, _)| *byte != 0)
            .flat_map(bits_of);
        changed.map(|chunk| (chunk, new.contains(chunk)))
    }

    /// The chunks that are not in it, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> {
        (0..self.chunks).filter(|chunk| !self.contains(*chunk))
    }
}

fn bits_of((byte, at): (u8, u32)) -> impl Iterator<Item = u32> {
    (0..8)
        .filter(move |bit| byte & (0x80 >> bit) != 0)
        .map(move |bit| at * 8 + bit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_as_any_other(chunks in 1_u32..100, calls in prop::collection::vec((any::<bool>(), 0_u32..110), 0..300)) {
            let (mut bitmap, mut model) = (Bitmap::none(chunks), BTreeSet::new());
            for (insert, chunk) in calls {
                if insert {
                    prop_assert_eq!(bitmap.insert(chunk), chunk < chunks && model.insert(chunk));
                } else {
                    prop_assert_eq!(bitmap.remove(chunk), model.remove(&chunk));
                }
                prop_assert_eq!(bitmap.count() as usize, model.len());
            }
            prop_assert!(bitmap.iter().eq(model.iter().copied()));
            prop_assert_eq!(bitmap.missing().count() + model.len(), chunks as usize);
            prop_assert_eq!(Bitmap::decode(bitmap.as_bytes(), chunks), Ok(bitmap));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..12), chunks in 0_u32..100) {
            if let Ok(bitmap) = Bitmap::decode(&bytes, chunks) {
                prop_assert_eq!(bitmap.as_bytes(), &bytes[..]);
                prop_assert_eq!(bitmap.iter().count(), bitmap.count() as usize);
            }
        }
    }

    proptest! {
        #[test]
        fn differences(sets in prop::array::uniform3(prop::collection::btree_set(0_u32..30, 0..30))) {
            let [a, b, c] = &sets;
            let bitmap = |set: &BTreeSet<u32>| {
                let mut bitmap = Bitmap::none(30);
                set.iter().for_each(|chunk| assert!(bitmap.insert(*chunk)));
                bitmap
            };
            let [x, y, z] = [a, b, c].map(bitmap);
            prop_assert!(x.without(&y, &z).eq(a.iter().copied().filter(|chunk| !b.contains(chunk) && !c.contains(chunk))));
            prop_assert!(x.changes(&y).eq(a.symmetric_difference(b).map(|chunk| (*chunk, b.contains(chunk)))));
        }
    }

    #[test]
    fn bits_behind_the_end_and_other_lengths_are_refused() {
        assert_eq!(Bitmap::decode(&[0xff, 0xc0], 10).unwrap(), Bitmap::all(10));
        for (bytes, chunks) in [
            (&[0xff, 0xe0][..], 10),
            (&[0xff], 10),
            (&[0, 0, 0], 10),
            (&[0], 0),
        ] {
            assert_eq!(Bitmap::decode(bytes, chunks), Err(NotABitmap { chunks }));
        }
        let huge = vec![0; MAX_CHUNKS as usize / 8 + 1];
        assert!(Bitmap::decode(&huge, MAX_CHUNKS + 8).is_err());
    }
}
