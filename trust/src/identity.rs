//! What one side owns: its private key, and the certificate over it. Must never print a key.

use core::fmt;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use ring::signature::Ed25519KeyPair;
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};

use crate::{NotAPeer, Peer, Pin};

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system gave no random bytes.
    #[error("the system gives no random numbers")]
    NoRandom,
    /// Not PKCS#8 with an Ed25519 key.
    #[error("not a private key: {0}")]
    BadKey(String),
    /// Not base64 of a DER certificate, or not PEM.
    #[error("not a certificate: {0}")]
    BadCertificate(&'static str),
    /// Its certificate is for another key.
    #[error("the certificate is for another key")]
    OtherKey,
    /// See [`NotAPeer`].
    #[error(transparent)]
    NotAPeer(#[from] NotAPeer),
}

/// An Ed25519 key (RFC 8410): PKCS#8 (RFC 5958) inside. Not ECDSA, whose tables for P-256 are 150 kB in every image.
#[derive(Clone)]
pub struct PrivateKey {
    der: Vec<u8>,
    signer: Arc<dyn SigningKey>,
}

impl PrivateKey {
    /// A new one from the system's random source.
    ///
    /// # Errors
    /// [`IdentityError::NoRandom`].
    pub fn generate() -> Result<Self, IdentityError> {
        let random = ring::rand::SystemRandom::new();
        let document = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| IdentityError::NoRandom)?;
        Self::from_der(document.as_ref().to_vec())
    }

    /// Reads [`PrivateKey::der`] back.
    ///
    /// # Errors
    /// [`IdentityError::BadKey`].
    pub fn from_der(der: Vec<u8>) -> Result<Self, IdentityError> {
        let key = PrivatePkcs8KeyDer::from(der.clone());
        let signer = any_eddsa_type(&key).map_err(|error| IdentityError::BadKey(error.to_string()))?;
        Ok(Self { der, signer })
    }

    /// PKCS#8, DER: a secret, for a file of mode 0600.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// PEM of [`PrivateKey::der`]: a secret as well.
    pub fn to_pem(&self) -> String {
        pem("PRIVATE KEY", &self.der)
    }

    /// Reads the first private key of a PEM text.
    ///
    /// # Errors
    /// [`IdentityError::BadKey`].
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|error| IdentityError::BadKey(error.to_string()))?;
        Self::from_der(key.secret_pkcs8_der().to_vec())
    }

    /// SubjectPublicKeyInfo, DER: what an enrolment carries.
    pub fn public_key(&self) -> Vec<u8> {
        self.signer
            .public_key()
            .map_or_else(Vec::new, |key| key.as_ref().to_vec())
    }

    pub(crate) fn signer(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.signer)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// SHA-256 of a certificate: by what the head's list knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of any bytes: a certificate's DER, or a public key's.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(hash)
    }
}

impl fmt::Display for Fingerprint {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A key and the certificate over it, with the authority that signed.
#[derive(Debug, Clone)]
pub struct Identity {
    key: PrivateKey,
    chain: [CertificateDer<'static>; 2],
    peer: Peer,
}

impl Identity {
    /// Of what the head answered to an enrolment.
    ///
    /// # Errors
    /// When the certificate is for another key or names nobody. Whether it is signed by the right authority is for its
    /// peers to judge (and the connection that brought it was pinned).
    pub fn new(key: PrivateKey, leaf: Vec<u8>, authority: Vec<u8>) -> Result<Self, IdentityError> {
        let leaf = CertificateDer::from(leaf);
        let parsed =
            webpki::EndEntityCert::try_from(&leaf).map_err(|_| IdentityError::BadCertificate("not X.509"))?;
        if parsed.subject_public_key_info().as_ref() != key.public_key() {
            return Err(IdentityError::OtherKey);
        }
        let peer = Peer::of(&leaf)?;
        let authority = CertificateDer::from(authority);
        if Pin::of(&authority).is_none() {
            return Err(IdentityError::BadCertificate("the authority's is not X.509"));
        }
        Ok(Self {
            key,
            chain: [leaf, authority],
            peer,
        })
    }

    /// The same from the message's two texts (base64).
    ///
    /// # Errors
    /// See [`Identity::new`].
    pub fn from_message(key: PrivateKey, leaf: &str, authority: &str) -> Result<Self, IdentityError> {
        let bytes = |text| crate::decode(text).ok_or(IdentityError::BadCertificate("not base64"));
        Self::new(key, bytes(leaf)?, bytes(authority)?)
    }

    /// Key and both certificates as one PEM text: a secret, for a file of mode 0600.
    pub fn to_pem(&self) -> String {
        let [leaf, authority] = &self.chain;
        self.key.to_pem() + &pem("CERTIFICATE", leaf) + &pem("CERTIFICATE", authority)
    }

    /// Reads [`Identity::to_pem`] back.
    ///
    /// # Errors
    /// See [`Identity::new`].
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let key = PrivateKey::from_pem(text)?;
        let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes());
        let mut next = || match certificates.next() {
            Some(Ok(certificate)) => Ok(certificate.to_vec()),
            _ => Err(IdentityError::BadCertificate("the PEM text holds fewer than two")),
        };
        let (leaf, authority) = (next()?, next()?);
        Self::new(key, leaf, authority)
    }

    /// Whom it names.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The pin of its authority: whoever holds this identity trusts what that authority signed.
    pub fn pin(&self) -> Option<Pin> {
        Pin::of(&self.chain[1])
    }

    /// DER of its certificate.
    pub fn leaf(&self) -> &[u8] {
        &self.chain[0]
    }

    /// DER of its authority's certificate.
    pub fn authority(&self) -> &[u8] {
        &self.chain[1]
    }

    /// Its key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::new(CertifiedKey::new(self.chain.to_vec(), self.key.signer()))
    }
}

/// RFC 7468.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let body = crate::encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: every index is a boundary.
        let (line, next) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
