//! Who may speak: keys, certificates, boot tokens, and the TLS configurations that check them. Must never open a socket,
//! read a clock or touch a file; callers bring streams, times and texts.
//!
//! Every certificate of a cluster is signed by its head's authority, directly; peers present `leaf, authority`, and each
//! side holds the other to the *pin*: the hash of the authority's public key, which booted with the node. Dates in
//! certificates mean nothing here (a node has no trusted clock yet); the head judges nodes by its list.

#[cfg(feature = "authority")]
mod authority;
mod identity;
mod peer;
mod pin;
mod tls;
#[cfg(feature = "authority")]
mod token;

#[cfg(feature = "authority")]
pub use authority::{Authority, AuthorityError};
pub use identity::{Fingerprint, Identity, IdentityError, PrivateKey};
pub use peer::{NotAPeer, Peer};
pub use pin::{NotAPin, Pin};
pub use rustls;
pub use tls::{
    ALPN, Clients, Distrust, Expect, client_config, in_words, peer_of, server_config, server_name, word,
};
#[cfg(feature = "authority")]
pub use token::{BootToken, Machine, TOKEN_SKEW_MS, TokenError, TokenSecret};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Binary in messages: base64 with padding (RFC 4648, section 4).
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads [`encode`] back; `None` for anything else.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Bytes from the system's random source.
///
/// # Errors
/// When the system has none, which Linux does not do after boot.
pub fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| IdentityError::NoRandom)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
