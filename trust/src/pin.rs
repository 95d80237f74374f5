//! The pin: by what a node knows its head. Public, so it may travel in clear; it must never be taken from the peer itself.

use core::fmt;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;

/// SHA-256 of the SubjectPublicKeyInfo of an authority. Its text is base64url without padding, 43 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin([u8; 32]);

/// A text is not a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a pin: it takes 43 characters of base64url, as the head writes them into cid.ca=")]
pub struct NotAPin;

impl Pin {
    /// Of a certificate's key; `None` when it is not an X.509 certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
        let hash = digest(&SHA256, &parsed.subject_public_key_info());
        hash.as_ref().try_into().ok().map(Self)
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Pin {
    type Err = NotAPin;

    fn from_str(text: &str) -> Result<Self, NotAPin> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NotAPin)?;
        bytes.try_into().map(Self).map_err(|_| NotAPin)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}
