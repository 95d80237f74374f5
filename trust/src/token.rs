//! Boot tokens: what a boot script carries so that the head knows the boot again that it answered. They need no memory:
//! the head checks its own seal. That one is used once is for the caller's disk to see to.

use core::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

/// First byte; others are refused.
const VERSION: u8 = 1;
/// Version, whether a UUID is bound, issue time, nonce.
const HEADER: usize = 1 + 1 + 8 + NONCE;
const NONCE: usize = 12;
/// HMAC-SHA256 (RFC 2104).
const TAG: usize = 32;
/// How far in the future a token may lie, in milliseconds: the head's clock may be set back while a PC boots.
pub const TOKEN_SKEW_MS: u64 = 5_000;

/// UUIDs that say nothing.
const USELESS: [[u8; 16]; 2] = [[0; 16], [0xff; 16]];

/// Whose boot a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    mac: [u8; 6],
    uuid: Option<[u8; 16]>,
}

impl Machine {
    /// By the MAC it boots from and its SMBIOS UUID as text. An empty, useless or unreadable UUID is none.
    ///
    /// Firmware and Linux do not always agree on the byte order of the first three fields (SMBIOS 2.6 turned it round),
    /// so both orders are the same machine.
    pub fn new(mac: [u8; 6], uuid: &str) -> Self {
        let uuid = parse_uuid(uuid)
            .filter(|bytes| !USELESS.contains(bytes))
            .map(|bytes| {
                let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
                let mut turned = [0; 16];
                turned[..8].copy_from_slice(&[d, c, b, a, f, e, h, g]);
                turned[8..].copy_from_slice(&rest);
                bytes.min(turned)
            });
        Self { mac, uuid }
    }
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 {
        return None;
    }
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(number.to_be_bytes())
}

/// What an honest token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootToken {
    /// Unix time in milliseconds.
    pub issued_unix_ms: u64,
    /// Tells it from every other.
    pub nonce: [u8; NONCE],
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not base64url of the right length.
    #[error("the boot token is damaged; restart the PC")]
    Malformed,
    /// Of another version of CID.
    #[error("the boot token is of another version of CID; restart the PC")]
    OtherVersion,
    /// The seal is wrong: another head's, another machine's, or invented.
    #[error("the boot token is not this head's for this machine; restart the PC")]
    Forged,
    /// Too old.
    #[error(
        "the boot token has expired; restart the PC, or raise [trust] token in head.toml when PCs boot that slowly"
    )]
    Expired,
    /// Issued in the future.
    #[error("the boot token lies in the future; was the head's clock set back? Restart the PC")]
    Future,
}

impl TokenError {
    /// The word it is counted by.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "token-malformed",
            Self::OtherVersion => "token-other-version",
            Self::Forged => "token-forged",
            Self::Expired => "token-expired",
            Self::Future => "token-future",
        }
    }
}

/// The key of the seal.
#[derive(Clone)]
pub struct TokenSecret(hmac::Key);

impl TokenSecret {
    /// From the authority's private key.
    pub(crate) fn derive(key: &[u8]) -> Self {
        let parent = hmac::Key::new(hmac::HMAC_SHA256, key);
        let secret = hmac::sign(&parent, b"cid boot token 1");
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref()))
    }

    /// A token for `machine`, issued now. `nonce` comes from [`random`](crate::random).
    pub fn mint(&self, now_unix_ms: u64, nonce: [u8; NONCE], machine: &Machine) -> String {
        let mut bytes = vec![VERSION, u8::from(machine.uuid.is_some())];
        bytes.extend(now_unix_ms.to_be_bytes());
        bytes.extend(nonce);
        let tag = hmac::sign(&self.0, &sealed(&bytes, machine));
        bytes.extend(tag.as_ref());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Checks that this head made `token` for `machine` at most `valid_ms` ago. A token that was made without knowing the
    /// UUID is good for any.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(
        &self,
        now_unix_ms: u64,
        valid_ms: u64,
        token: &str,
        machine: &Machine,
    ) -> Result<BootToken, TokenError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| TokenError::Malformed)?;
        let bytes: [u8; HEADER + TAG] = bytes.try_into().map_err(|_| TokenError::Malformed)?;
        let (header, tag) = bytes.split_at(HEADER);
        let [version, bound, rest @ ..] = header else {
            return Err(TokenError::Malformed);
        };
        if *version != VERSION {
            return Err(TokenError::OtherVersion);
        }
        let machine = Machine {
            uuid: machine.uuid.filter(|_| *bound != 0),
            ..*machine
        };
        hmac::verify(&self.0, &sealed(header, &machine), tag).map_err(|_| TokenError::Forged)?;
        let (issued, nonce) = rest.split_at(8);
        let issued_unix_ms = u64::from_be_bytes(issued.try_into().map_err(|_| TokenError::Malformed)?);
        if issued_unix_ms > now_unix_ms.saturating_add(TOKEN_SKEW_MS) {
            return Err(TokenError::Future);
        }
        if now_unix_ms.saturating_sub(issued_unix_ms) > valid_ms {
            return Err(TokenError::Expired);
        }
        Ok(BootToken {
            issued_unix_ms,
            nonce: nonce.try_into().map_err(|_| TokenError::Malformed)?,
        })
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret")
    }
}

/// What the seal covers. The header says by its second byte whether a UUID follows, so no two machines read alike.
fn sealed(header: &[u8], machine: &Machine) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.extend(machine.mac);
    bytes.extend(machine.uuid.iter().flatten());
    bytes
}
