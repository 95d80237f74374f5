//! TLS 1.3 between head, nodes and administrators: configurations, and who is on the other side. Must not speak an older
//! version, resume sessions (a certificate that was taken off the list must not live on in a ticket) or judge dates.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
    verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{SigningKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName,
    Error, OtherError, ServerConfig, SignatureScheme,
};

use crate::{Identity, Peer, Pin};

/// The protocol spoken inside (RFC 7301).
pub const ALPN: &[u8] = b"cid-node/1";

/// Why a peer's certificate is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Its chain holds no authority of the pinned key: another cluster, or an impostor.
    #[error("it was not signed by this cluster's head (the authority's key is not the pinned one)")]
    OtherAuthority,
    /// The authority is named, but did not sign.
    #[error("its signature is not the authority's")]
    NotSigned,
    /// It names somebody who has no business here: a node where the head is expected.
    #[error("it belongs to somebody else than who is expected here")]
    OtherRole,
    /// TLS was agreed upon, but not what is spoken inside.
    #[error("it does not speak cid-node/1")]
    OtherProtocol,
}

/// Who may be at the other end of a connection that we dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The head and nobody else.
    Head,
    /// The head or any node.
    HeadOrNode,
}

/// What a listener asks of those who call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// A certificate of this cluster or none: who has none may enrol.
    MayBeNew,
    /// A certificate of this cluster: head, node or administrator.
    MustBeKnown,
}

/// For the side that calls: it believes whom `pin` signed and who is `expect`ed, and shows `identity` where asked.
///
/// # Errors
/// None in practice: the cipher suites are fixed.
pub fn client_config(
    pin: Pin,
    expect: Expect,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Arc::new(Verifier::new(pin, Role::Server(expect)));
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(NoClock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// For the side that is called. Certificates must be of `identity`'s own authority.
///
/// # Errors
/// When `identity` holds no authority (it always does).
pub fn server_config(identity: &Identity, clients: Clients) -> Result<Arc<ServerConfig>, Error> {
    let pin = identity
        .pin()
        .ok_or_else(|| Error::General("no authority in this identity".to_owned()))?;
    let verifier = Arc::new(Verifier::new(pin, Role::Client(clients)));
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(NoClock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a client passes as the name of its server: it is judged by pin and role instead, and never sent.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(core::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Who is at the other end of an established connection; `None` for a client without a certificate.
///
/// # Errors
/// [`Distrust::OtherProtocol`] when nothing was agreed to be spoken inside, [`Distrust::OtherRole`] for a certificate that
/// names nobody.
pub fn peer_of(connection: &CommonState) -> Result<Option<Peer>, Distrust> {
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(Distrust::OtherProtocol);
    }
    match connection.peer_certificates() {
        None | Some([]) => Ok(None),
        Some([leaf, ..]) => Peer::of(leaf).map(Some).map_err(|_| Distrust::OtherRole),
    }
}

/// The word by which a failed handshake is counted.
pub fn word(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref() {
            Some(Distrust::OtherAuthority) => "tls-other-authority",
            Some(Distrust::NotSigned) => "tls-not-signed",
            Some(Distrust::OtherRole) => "tls-other-role",
            Some(Distrust::OtherProtocol) => "tls-other-protocol",
            None => "tls-certificate",
        },
        Error::InvalidCertificate(_) => "tls-certificate",
        Error::NoCertificatesPresented => "tls-no-certificate",
        Error::NoApplicationProtocol => "tls-other-protocol",
        Error::PeerIncompatible(_) => "tls-incompatible",
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => "tls-other-protocol",
        Error::AlertReceived(_) => "tls-alert",
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => "tls-not-tls",
        _ => "tls-failed",
    }
}

/// Why a connection failed, for people.
pub fn in_words(error: &std::io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            format!("its certificate is not good: {}", other.0)
        }
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        _ => error.to_string(),
    }
}

/// What verifies: Ed25519 and nothing else.
const SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ED25519],
    mapping: &[(SignatureScheme::ED25519, &[webpki::ring::ED25519])],
};

/// One of each, so that nothing else of ring is linked into node software: an image has room for few kilobytes.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![rustls::crypto::ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![rustls::crypto::ring::kx_group::X25519],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Ring,
        key_provider: &Ring,
    })
}

/// What rustls asks a provider for besides algorithms.
#[derive(Debug)]
struct Ring;

impl SecureRandom for Ring {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for Ring {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        match &key {
            PrivateKeyDer::Pkcs8(key) => rustls::crypto::ring::sign::any_eddsa_type(key),
            _ => Err(Error::General("not a PKCS#8 key".to_owned())),
        }
    }
}

/// Nothing here depends on the time.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(sometime())
    }
}

/// Within the dates of every certificate that the authority signs.
fn sometime() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000))
}

#[derive(Debug)]
enum Role {
    Server(Expect),
    Client(Clients),
}

#[derive(Debug)]
struct Verifier {
    pin: Pin,
    role: Role,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(pin: Pin, role: Role) -> Self {
        Self {
            pin,
            role,
            provider: provider(),
        }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        usage: webpki::KeyUsage,
    ) -> Result<(), Distrust> {
        let authority = others
            .iter()
            .find(|certificate| Pin::of(certificate) == Some(self.pin))
            .ok_or(Distrust::OtherAuthority)?;
        let anchor = webpki::anchor_from_trusted_cert(authority).map_err(|_| Distrust::OtherAuthority)?;
        let parsed = webpki::EndEntityCert::try_from(leaf).map_err(|_| Distrust::NotSigned)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        // No intermediates: whatever else the peer sent, the authority itself signs or nobody does.
        parsed
            .verify_for_usage(algorithms, &[anchor], &[], sometime(), usage, None, None)
            .map_err(|_| Distrust::NotSigned)?;
        let peer = Peer::of(leaf).map_err(|_| Distrust::OtherRole)?;
        let allowed = match (&self.role, peer) {
            (Role::Client(_), _) => true,
            (Role::Server(_), Peer::Head) => true,
            (Role::Server(expect), Peer::Node(_)) => *expect == Expect::HeadOrNode,
            (Role::Server(_), Peer::Admin) => false,
        };
        allowed.then_some(()).ok_or(Distrust::OtherRole)
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

fn refuse(distrust: Distrust) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(distrust))))
}

/// Never reached: TLS 1.2 is not offered.
fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, others, webpki::KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
            .map_err(refuse)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        !matches!(self.role, Role::Client(Clients::MayBeNew))
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, others, webpki::KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
            .map_err(refuse)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
