//! The head's certificate authority: signs for the head, its nodes and its administrator. Must not decide who deserves it.

use core::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{Identity, IdentityError, Peer, Pin, PrivateKey, TokenSecret};

/// What precedes the key in the SubjectPublicKeyInfo of Ed25519 (RFC 8410, 4): id-Ed25519, a bit string of 33 bytes.
const ED25519_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// Tag of a SEQUENCE (X.690), with which a TBSCertificate begins.
const DER_SEQUENCE: u8 = 0x30;
/// Bytes of the key itself (RFC 8032, 5.1.5).
const KEY_LENGTH: usize = 32;

/// Why the authority cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its own key, or the one it made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Not the SubjectPublicKeyInfo of an Ed25519 key.
    #[error("not a public key of Ed25519")]
    BadPublicKey,
    /// A document that could pass for a certificate.
    #[error("a document that begins as a certificate does is not signed")]
    LikeACertificate,
    /// The library gave none.
    #[error("signing failed")]
    NoSignature,
    /// The library's words.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// A certificate authority. Its key is all it is made of: certificates of it are equal in what counts, whenever made.
pub struct Authority {
    key: PrivateKey,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pin: Pin,
}

impl Authority {
    /// A new one from the system's random source.
    ///
    /// # Errors
    /// Without random numbers.
    pub fn generate() -> Result<Self, AuthorityError> {
        Self::of_key(PrivateKey::generate()?)
    }

    /// Reads [`Authority::key_pem`] back.
    ///
    /// # Errors
    /// When it is no PKCS#8 key of Ed25519.
    pub fn from_key_pem(text: &str) -> Result<Self, AuthorityError> {
        Self::of_key(PrivateKey::from_pem(text)?)
    }

    /// The key: the cluster's most precious secret, for a file of mode 0600.
    pub fn key_pem(&self) -> String {
        self.key.to_pem()
    }

    fn of_key(key: PrivateKey) -> Result<Self, AuthorityError> {
        let pair = PrivatePkcs8KeyDer::from(key.der());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&pair, &PKCS_ED25519)?;
        let mut params = named("CID head authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&pair)?.der().clone();
        let pin = Pin::of(&certificate).ok_or(IdentityError::BadCertificate("the authority's own"))?;
        Ok(Self {
            key,
            issuer: Issuer::new(params, pair),
            certificate,
            pin,
        })
    }

    /// By what nodes know it.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The secret behind boot tokens. It follows from the authority's key, so a head that lost one lost both.
    pub fn token_secret(&self) -> TokenSecret {
        TokenSecret::derive(self.key.der())
    }

    /// A certificate for `peer` over `public_key` (SubjectPublicKeyInfo, DER); DER.
    ///
    /// # Errors
    /// [`AuthorityError::BadPublicKey`] for any other kind of key.
    pub fn sign(&self, peer: &Peer, public_key: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let theirs = public_key
            .strip_prefix(&ED25519_PREFIX)
            .filter(|key| key.len() == KEY_LENGTH)
            .ok_or(AuthorityError::BadPublicKey)?;
        let mut params = named(&peer.to_string());
        params.subject_alt_names = CertificateParams::new([peer.to_string()])?.subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Head and nodes listen and call; an administrator only calls.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if *peer != Peer::Admin {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&PublicKey(theirs), &self.issuer)?;
        Ok(certificate.der().to_vec())
    }

    /// Its raw public key (RFC 8032, 5.1.5); [`Authority::pin`] is over the SubjectPublicKeyInfo that wraps it.
    pub fn public_key(&self) -> [u8; KEY_LENGTH] {
        let wrapped = self.key.public_key();
        // `PrivateKey` is of no other kind of key.
        *wrapped.last_chunk().unwrap_or(&[0; KEY_LENGTH])
    }

    /// A signature over a document that is no certificate (RFC 8032, 5.1.6). The document's first byte must not be 0x30, with which
    /// certificates begin.
    ///
    /// # Errors
    /// [`AuthorityError::LikeACertificate`]; [`AuthorityError::NoSignature`] when the library fails, which it has no cause to.
    pub fn sign_bytes(&self, document: &[u8]) -> Result<[u8; 64], AuthorityError> {
        if document.first() == Some(&DER_SEQUENCE) {
            return Err(AuthorityError::LikeACertificate);
        }
        self.key
            .signer()
            .choose_scheme(&[SignatureScheme::ED25519])
            .and_then(|signer| signer.sign(document).ok())
            .and_then(|signature| signature.try_into().ok())
            .ok_or(AuthorityError::NoSignature)
    }

    /// A fresh key with a certificate for `peer`: the head's own at each start, and the administrator's.
    ///
    /// # Errors
    /// Without random numbers.
    pub fn issue(&self, peer: &Peer) -> Result<Identity, AuthorityError> {
        let key = PrivateKey::generate()?;
        let leaf = self.sign(peer, &key.public_key())?;
        Ok(Identity::new(key, leaf, self.certificate.to_vec())?)
    }
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// Valid for ever, as far as dates go (RFC 5280, 4.1.2.5): a node's clock is not known before it trusts, and what ends a
/// certificate is the head's list.
fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Somebody else's public key.
struct PublicKey<'a>(&'a [u8]);

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}
