//! The envelope of a membership datagram: ChaCha20-Poly1305 (RFC 8439) under a group key that the head rotates. Who
//! has the key is a member; must never show a body that was not sealed by one, or that was shown before.
//!
//! | offset | bytes | field, all of it authenticated |
//! |---|---|---|
//! | 0 | 4 | magic `CIDm` |
//! | 4 | 1 | version, [`VERSION`] |
//! | 5 | 1 | 0: to one member; 1: to the group |
//! | 6 | 4 | epoch of the group key |
//! | 10 | 16 | id of the sender |
//! | 26 | 8 | incarnation of the sender |
//! | 34 | 4 | sequence: rises with every datagram of a boot, through all epochs |
//! | 38 | n + 16 | the sealed body and its tag |
//!
//! The addresses from which and to which a datagram travels are authenticated too, without being in it: what was
//! recorded on the wire cannot be sent from elsewhere, or to somebody else. (So there is no address translation between
//! members.)
//!
//! Each boot seals with a key of its own, SHA-256 of the group key, its id and its incarnation, and its sequence is
//! the nonce: no two datagrams ever share key and nonce, without a random number. The price of a group key: a member
//! can speak in another member's name. What only the head may say travels by TLS.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddrV4;
use core::time::Duration;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use sha2::{Digest, Sha256};

use crate::identity::{Boot, NodeId};

pub use crate::wire::VERSION;

const MAGIC: [u8; 4] = *b"CIDm";
const HEADER: usize = 38;
const TAG: usize = 16;
/// Bytes that sealing adds.
pub const OVERHEAD: usize = HEADER + TAG;
/// Longest datagram, in bytes.
pub const MAX_DATAGRAM: usize = crate::wire::MAX_BODY + OVERHEAD;
/// The key before the current one opens this much longer: members switch when they hear of the new one.
pub const OLD_KEY: Duration = Duration::from_secs(30);
/// Datagrams may overtake one another by this many.
const WINDOW: u32 = 128;

/// The key of a group in one epoch.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupKey {
    /// Rises with every rotation.
    pub epoch: u32,
    /// It.
    pub secret: [u8; 32],
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupKey {{ epoch: {}, .. }}", self.epoch)
    }
}

impl GroupKey {
    fn cipher(&self, boot: Boot) -> ChaCha20Poly1305 {
        let mut hash = Sha256::new();
        hash.update(b"cid membership datagram 1");
        hash.update(self.secret);
        hash.update(boot.id.0);
        hash.update(boot.incarnation.to_be_bytes());
        let key: [u8; 32] = hash.finalize().into();
        ChaCha20Poly1305::new(&key.into())
    }
}

fn nonce(sequence: u32) -> Nonce {
    let [a, b, c, d] = sequence.to_be_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d].into()
}

/// Why a datagram could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsealable {
    /// Four thousand million were sealed: this boot must end, or begin another incarnation.
    Exhausted,
    /// The body is longer than [`crate::wire::MAX_BODY`].
    TooLong,
}

/// Seals what one boot says.
pub struct Sealer {
    me: Boot,
    epoch: u32,
    cipher: ChaCha20Poly1305,
    sequence: u32,
}

impl Sealer {
    /// Nothing is sealed yet. There must be one sealer per boot, ever.
    pub fn new(me: Boot, key: &GroupKey) -> Self {
        Self {
            me,
            epoch: key.epoch,
            cipher: key.cipher(me),
            sequence: 0,
        }
    }

    /// From here on with this key; an older one than the current is not taken.
    pub fn handle_key(&mut self, key: &GroupKey) {
        if key.epoch > self.epoch {
            self.epoch = key.epoch;
            self.cipher = key.cipher(self.me);
        }
    }

    /// The datagram that we send from `source` to `destination`, or to the group.
    pub fn seal(
        &mut self,
        source: SocketAddrV4,
        destination: Option<SocketAddrV4>,
        body: &[u8],
    ) -> Result<Vec<u8>, Unsealable> {
        if body.len() > crate::wire::MAX_BODY {
            return Err(Unsealable::TooLong);
        }
        let sequence = self.sequence.checked_add(1).ok_or(Unsealable::Exhausted)?;
        self.sequence = sequence;
        let mut datagram = Vec::with_capacity(OVERHEAD + body.len());
        datagram.extend_from_slice(&MAGIC);
        datagram.extend_from_slice(&[VERSION, u8::from(destination.is_none())]);
        datagram.extend_from_slice(&self.epoch.to_be_bytes());
        datagram.extend_from_slice(&self.me.id.0);
        datagram.extend_from_slice(&self.me.incarnation.to_be_bytes());
        datagram.extend_from_slice(&sequence.to_be_bytes());
        let payload = Payload {
            msg: body,
            aad: &authenticated(&datagram, source, destination),
        };
        let sealed = self
            .cipher
            .encrypt(&nonce(sequence), payload)
            .map_err(|_| Unsealable::TooLong)?;
        datagram.extend_from_slice(&sealed);
        Ok(datagram)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Sealer {{ me: {}, epoch: {}, sequence: {} }}",
            self.me, self.epoch, self.sequence
        )
    }
}

/// Why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Unopened {
    /// Shorter than an empty envelope.
    TooShort,
    /// Longer than [`MAX_DATAGRAM`].
    TooLong,
    /// Not a membership datagram.
    Magic,
    /// Of another version of CID.
    Version,
    /// Sealed with a key that is no longer, or not yet, valid here.
    Epoch,
    /// Not sealed with the key, or changed on its way.
    Forged,
    /// Seen before, or too far behind those seen.
    Replay,
    /// Of an earlier boot of that machine.
    Ghost,
    /// More members than there is room for.
    Full,
}

impl Unopened {
    /// Every reason with its name for counters, in the order of the counters.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::TooShort, "seal-too-short"),
        (Self::TooLong, "seal-too-long"),
        (Self::Magic, "seal-magic"),
        (Self::Version, "seal-version"),
        (Self::Epoch, "seal-epoch"),
        (Self::Forged, "seal-forged"),
        (Self::Replay, "seal-replay"),
        (Self::Ghost, "seal-ghost"),
        (Self::Full, "seal-full"),
    ];
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "datagram is shorter than an envelope",
            Self::TooLong => "datagram is longer than a membership datagram may be",
            Self::Magic => "datagram is not of the membership",
            Self::Version => "datagram is of another version of CID",
            Self::Epoch => "datagram is sealed with a key that is not valid now",
            Self::Forged => "datagram is not sealed with our key, or was changed",
            Self::Replay => "datagram was seen before",
            Self::Ghost => "datagram is from an earlier boot of that machine",
            Self::Full => "too many members have been heard already",
        })
    }
}

impl core::error::Error for Unopened {}

/// What was seen of one boot.
struct Sender {
    incarnation: u64,
    epoch: u32,
    cipher: ChaCha20Poly1305,
    highest: u32,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

impl Sender {
    fn is_replay(&self, sequence: u32) -> bool {
        match self.highest.checked_sub(sequence) {
            None => false,
            Some(behind) => behind >= WINDOW || self.seen & (1 << behind) != 0,
        }
    }

    fn mark(&mut self, sequence: u32) {
        if let Some(ahead) = sequence.checked_sub(self.highest) {
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = sequence;
        } else if let Some(bit) = 1_u128.checked_shl(self.highest - sequence) {
            self.seen |= bit;
        }
    }
}

/// Opens what others sealed.
pub struct Opener {
    /// Newest first; the second opens until the moment beside it.
    keys: Vec<(GroupKey, Duration)>,
    senders: BTreeMap<NodeId, Sender>,
    capacity: usize,
    drops: [u64; Unopened::ALL.len()],
}

impl Opener {
    /// Nobody was heard; at most `capacity` members will be.
    pub fn new(key: GroupKey, capacity: usize) -> Self {
        Self {
            keys: alloc::vec![(key, Duration::MAX)],
            senders: BTreeMap::new(),
            capacity,
            drops: Default::default(),
        }
    }

    /// A newer key: the current one opens for [`OLD_KEY`] more, the one before it no longer. `revoked`: some member
    /// was excluded, so the current one ends now.
    pub fn handle_key(&mut self, now: Duration, key: GroupKey, revoked: bool) {
        let Some((current, until)) = self.keys.first_mut() else {
            return;
        };
        if key.epoch <= current.epoch {
            return;
        }
        *until = if revoked { now } else { now + OLD_KEY };
        self.keys.truncate(1);
        self.keys.insert(0, (key, Duration::MAX));
    }

    /// A member was excluded: its windows are forgotten, its room is free.
    pub fn forget(&mut self, id: NodeId) {
        self.senders.remove(&id);
    }

    /// The sender and what it said, in a datagram that came from `source` to our address `me` or to the group. A drop
    /// is counted and its reason returned.
    pub fn open(
        &mut self,
        now: Duration,
        source: SocketAddrV4,
        me: SocketAddrV4,
        datagram: &[u8],
    ) -> Result<(Boot, Vec<u8>), Unopened> {
        self.try_open(now, source, me, datagram).inspect_err(|reason| {
            if let Some(count) = self.drops.get_mut(*reason as usize) {
                *count += 1;
            }
        })
    }

    /// Every reason's name with its count, zero included.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Unopened::ALL
            .iter()
            .map(|(_, name)| *name)
            .zip(self.drops.iter().copied())
    }

    fn try_open(
        &mut self,
        now: Duration,
        source: SocketAddrV4,
        me: SocketAddrV4,
        datagram: &[u8],
    ) -> Result<(Boot, Vec<u8>), Unopened> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Unopened::TooLong);
        }
        let (header, sealed) = datagram.split_first_chunk::<HEADER>().ok_or(Unopened::TooShort)?;
        if sealed.len() < TAG {
            return Err(Unopened::TooShort);
        }
        let mut rest = header.as_slice();
        if take::<4>(&mut rest)? != MAGIC {
            return Err(Unopened::Magic);
        }
        let destination = match take::<2>(&mut rest)? {
            [VERSION, 0] => Some(me),
            [VERSION, 1] => None,
            _ => return Err(Unopened::Version),
        };
        let epoch = u32::from_be_bytes(take(&mut rest)?);
        let boot = Boot {
            id: NodeId(take(&mut rest)?),
            incarnation: u64::from_be_bytes(take(&mut rest)?),
        };
        let sequence = u32::from_be_bytes(take(&mut rest)?);

        let valid = |(key, until): &&(GroupKey, Duration)| key.epoch == epoch && now < *until;
        let (key, _) = self.keys.iter().find(valid).ok_or(Unopened::Epoch)?;
        let known = self.senders.get(&boot.id);
        if let Some(sender) = known {
            // Cheaper than opening, and what is replayed was sealed properly once.
            if boot.incarnation < sender.incarnation {
                return Err(Unopened::Ghost);
            }
            if boot.incarnation == sender.incarnation && sender.is_replay(sequence) {
                return Err(Unopened::Replay);
            }
        }
        let same = known.filter(|sender| (sender.incarnation, sender.epoch) == (boot.incarnation, epoch));
        let fresh = if same.is_none() {
            Some(key.cipher(boot))
        } else {
            None
        };
        let cipher = same
            .map(|sender| &sender.cipher)
            .or(fresh.as_ref())
            .ok_or(Unopened::Epoch)?;
        let payload = Payload {
            msg: sealed,
            aad: &authenticated(header, source, destination),
        };
        let body = cipher
            .decrypt(&nonce(sequence), payload)
            .map_err(|_| Unopened::Forged)?;

        // From here on the sender is a member.
        if known.is_none() && self.senders.len() >= self.capacity {
            return Err(Unopened::Full);
        }
        match (self.senders.get_mut(&boot.id), fresh) {
            (Some(sender), fresh) if sender.incarnation == boot.incarnation => {
                if let Some(cipher) = fresh.filter(|_| sender.epoch < epoch) {
                    (sender.epoch, sender.cipher) = (epoch, cipher);
                }
                sender.mark(sequence);
            }
            (_, Some(cipher)) => {
                let sender = Sender {
                    incarnation: boot.incarnation,
                    epoch,
                    cipher,
                    highest: sequence,
                    seen: 1,
                };
                self.senders.insert(boot.id, sender);
            }
            (_, None) => {}
        }
        Ok((boot, body))
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Opener {{ keys: {:?}, senders: {} }}",
            self.keys,
            self.senders.len()
        )
    }
}

/// What the tag covers besides the body.
fn authenticated(header: &[u8], source: SocketAddrV4, destination: Option<SocketAddrV4>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 12);
    bytes.extend_from_slice(header);
    for address in [Some(source), destination].into_iter().flatten() {
        bytes.extend_from_slice(&address.ip().octets());
        bytes.extend_from_slice(&address.port().to_be_bytes());
    }
    bytes
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Unopened> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(Unopened::TooShort)?;
    *rest = tail;
    Ok(*head)
}
