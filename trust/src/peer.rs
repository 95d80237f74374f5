//! Who a certificate names. Must not judge whether it is signed: the verifiers of `tls` do, before this is asked.

use core::fmt;

use rustls::pki_types::CertificateDer;

const HEAD: &str = "head.cid";
const ADMIN: &str = "admin.cid";
const NODE_SUFFIX: &str = ".node.cid";

/// The other side of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The head.
    Head,
    /// A node, by its id of 32 hexadecimal digits (lower-case).
    Node(String),
    /// Somebody who may read the head's folder.
    Admin,
}

/// A certificate names none of [`Peer`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the certificate names neither a head nor a node nor an administrator")]
pub struct NotAPeer;

impl Peer {
    /// The one name in a certificate's subjectAltName (RFC 5280, 4.2.1.6).
    ///
    /// # Errors
    /// [`NotAPeer`] when it has none, several, or another.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, NotAPeer> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| NotAPeer)?;
        let mut names = parsed.valid_dns_names();
        let (Some(name), None) = (names.next(), names.next()) else {
            return Err(NotAPeer);
        };
        Self::from_name(name).ok_or(NotAPeer)
    }

    /// A node's, when `id` is one.
    pub fn node(id: &str) -> Option<Self> {
        let good = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self::Node(id.to_owned()))
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            HEAD => Some(Self::Head),
            ADMIN => Some(Self::Admin),
            _ => Self::node(name.strip_suffix(NODE_SUFFIX)?),
        }
    }
}

impl fmt::Display for Peer {
    /// As in the certificate.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str(HEAD),
            Self::Node(id) => write!(f, "{id}{NODE_SUFFIX}"),
            Self::Admin => f.write_str(ADMIN),
        }
    }
}
