//! Whole handshakes in memory, between every two sides that may and may not meet.

use std::sync::Arc;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};

use super::*;

const ID: &str = "00112233445566778899aabbccddeeff";

fn authority() -> Authority {
    Authority::generate().unwrap()
}

fn node() -> Peer {
    Peer::node(ID).unwrap()
}

/// What each side knows after the handshake, or the word of whoever refused first.
type Met = Result<(Option<Peer>, Option<Peer>), &'static str>;

/// Carries bytes between the two until both are done or one refuses.
fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Met {
    let mut client = ClientConnection::new(client, server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&mut server, &wire).map_err(|error| word(&error))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&mut client, &wire).map_err(|error| word(&error))?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    let refused = |distrust: Distrust| word_of(distrust);
    Ok((
        peer_of(&client).map_err(refused)?,
        peer_of(&server).map_err(refused)?,
    ))
}

fn word_of(distrust: Distrust) -> &'static str {
    match distrust {
        Distrust::OtherProtocol => "tls-other-protocol",
        _ => "other",
    }
}

fn feed<D>(connection: &mut rustls::ConnectionCommon<D>, mut wire: &[u8]) -> Result<(), Error>
where
    D: rustls::SideData,
{
    while !wire.is_empty() {
        connection.read_tls(&mut wire).unwrap();
        connection.process_new_packets()?;
    }
    Ok(())
}

fn from(identity: &Identity, expect: Expect) -> Arc<ClientConfig> {
    client_config(identity.pin().unwrap(), expect, Some(identity)).unwrap()
}

#[test]
fn a_new_machine_enrols_and_comes_back_as_a_node() {
    let authority = authority();
    let head = server_config(&authority.issue(&Peer::Head).unwrap(), Clients::MayBeNew).unwrap();
    let stranger = client_config(authority.pin(), Expect::Head, None).unwrap();
    assert_eq!(handshake(stranger, head.clone()), Ok((Some(Peer::Head), None)));
    let key = PrivateKey::generate().unwrap();
    let leaf = authority.sign(&node(), &key.public_key()).unwrap();
    let identity = Identity::from_message(key, &encode(&leaf), &encode(authority.certificate())).unwrap();
    let client = from(&identity, Expect::Head);
    assert_eq!(handshake(client, head), Ok((Some(Peer::Head), Some(node()))));
}

#[test]
fn nodes_hear_head_nodes_and_administrators_and_nobody_without_a_certificate() {
    let authority = authority();
    let own = authority.issue(&node()).unwrap();
    let listening = server_config(&own, Clients::MustBeKnown).unwrap();
    for peer in [Peer::Head, Peer::node(&"0f".repeat(16)).unwrap(), Peer::Admin] {
        let identity = authority.issue(&peer).unwrap();
        let met = handshake(from(&identity, Expect::HeadOrNode), listening.clone());
        assert_eq!(met, Ok((Some(node()), Some(peer))));
    }
    let nobody = client_config(authority.pin(), Expect::HeadOrNode, None).unwrap();
    assert_eq!(handshake(nobody, listening), Err("tls-no-certificate"));
}

#[test]
fn impostors_are_told_apart() {
    let (ours, theirs) = (authority(), authority());
    let head = ours.issue(&Peer::Head).unwrap();
    let accepting = server_config(&head, Clients::MayBeNew).unwrap();
    let stranger = client_config(ours.pin(), Expect::Head, None).unwrap();

    // Another cluster's head, and a node of ours, in the head's place.
    let second = server_config(&theirs.issue(&Peer::Head).unwrap(), Clients::MayBeNew).unwrap();
    assert_eq!(handshake(stranger.clone(), second), Err("tls-other-authority"));
    // An administrator's key is not even for listening.
    for (peer, word) in [(node(), "tls-other-role"), (Peer::Admin, "tls-not-signed")] {
        let posing = ours.issue(&peer).unwrap();
        let posing = server_config(&posing, Clients::MayBeNew).unwrap();
        assert_eq!(handshake(stranger.clone(), posing), Err(word), "{peer}");
    }
    // Another cluster's node, calling ours.
    let foreign = theirs.issue(&node()).unwrap();
    let calling = client_config(ours.pin(), Expect::Head, Some(&foreign)).unwrap();
    assert_eq!(handshake(calling, accepting.clone()), Err("tls-other-authority"));
    // A leaf of theirs shown with an authority of ours that did not sign it.
    let key = PrivateKey::generate().unwrap();
    let leaf = theirs.sign(&node(), &key.public_key()).unwrap();
    let mixed = Identity::new(key, leaf, ours.certificate().to_vec()).unwrap();
    assert_eq!(
        handshake(from(&mixed, Expect::Head), accepting.clone()),
        Err("tls-not-signed")
    );
    // A node that signs for others: its certificate is no authority.
    let posing = ours.issue(&node()).unwrap();
    let key = posing.key().to_pem();
    let usurper = Authority::from_key_pem(&key).unwrap();
    let child = PrivateKey::generate().unwrap();
    let leaf = usurper.sign(&Peer::Head, &child.public_key()).unwrap();
    let chain = Identity::new(child, leaf, posing.leaf().to_vec()).unwrap();
    let usurped = server_config(&chain, Clients::MayBeNew).unwrap();
    assert_eq!(handshake(stranger.clone(), usurped), Err("tls-other-authority"));
    // The control: the same stranger, the true head.
    assert!(handshake(stranger, accepting).is_ok());
}

#[test]
fn no_other_version_and_no_other_protocol_is_spoken() {
    let authority = authority();
    let head = authority.issue(&Peer::Head).unwrap();
    let accepting = server_config(&head, Clients::MayBeNew).unwrap();
    let good = client_config(authority.pin(), Expect::Head, None).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(TrustsAnybody(provider.clone()));
    let older = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Arc::new(config)
    };
    assert_eq!(
        handshake(older(&[&rustls::version::TLS12]), accepting.clone()),
        Err("tls-incompatible")
    );
    assert!(handshake(older(&[&rustls::version::TLS13]), accepting.clone()).is_ok());
    for protocols in [vec![b"http/1.1".to_vec()], Vec::new()] {
        let mut other = (*good).clone();
        other.alpn_protocols = protocols;
        assert_eq!(
            handshake(Arc::new(other), accepting.clone()),
            Err("tls-other-protocol")
        );
    }
    assert!(handshake(good, accepting).is_ok());
}

/// A client that checks nothing, so that only the server can refuse.
#[derive(Debug)]
struct TrustsAnybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn an_authority_and_an_administrator_survive_their_files() {
    let first = authority();
    let again = Authority::from_key_pem(&first.key_pem()).unwrap();
    assert_eq!(first.pin(), again.pin());
    assert_eq!(first.pin().to_string().parse(), Ok(first.pin()));
    let admin = first.issue(&Peer::Admin).unwrap();
    let admin = Identity::from_pem(&admin.to_pem()).unwrap();
    assert_eq!(admin.pin(), Some(again.pin()));
    // A node that was certified before the restart, a head after it.
    let head = server_config(&again.issue(&Peer::Head).unwrap(), Clients::MayBeNew).unwrap();
    let old = first.issue(&node()).unwrap();
    assert!(handshake(from(&old, Expect::Head), head).is_ok());
    assert!("x".parse::<Pin>().is_err() && Authority::from_key_pem("x").is_err());
}

#[test]
fn only_ed25519_keys_are_signed_and_only_for_their_owner() {
    let authority = authority();
    let key = PrivateKey::generate().unwrap();
    let good = key.public_key();
    let cut = &good[..good.len() - 1];
    let mut x25519 = good.clone();
    // id-X25519 (RFC 8410, 3): of the same shape, for another use.
    x25519[8] = 0x6e;
    for bad in [&b""[..], cut, &x25519, &[good.clone(), vec![0]].concat()] {
        assert!(matches!(
            authority.sign(&node(), bad),
            Err(AuthorityError::BadPublicKey)
        ));
    }
    let leaf = authority.sign(&node(), &good).unwrap();
    let other = PrivateKey::generate().unwrap();
    assert!(matches!(
        Identity::new(other, leaf, authority.certificate().to_vec()),
        Err(IdentityError::OtherKey)
    ));
}

#[test]
fn secrets_do_not_show_in_debug_texts() {
    let authority = authority();
    let identity = authority.issue(&node()).unwrap();
    let text = format!("{authority:?} {identity:?} {:?}", authority.token_secret());
    let secret = identity.key().to_pem();
    let line = secret.lines().nth(1).unwrap();
    assert!(!text.contains(line) && text.len() < 10_000, "{text}");
    let body = format!("{:?}", &identity.key().der()[40..60]);
    assert!(!text.contains(body.trim_matches(['[', ']'])));
}

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
const NOW: u64 = 1_800_000_000_000;
const VALID: u64 = 120_000;

#[test]
fn a_token_is_for_one_machine_and_some_seconds() {
    let secret = authority().token_secret();
    let machine = Machine::new(MAC, UUID);
    let token = secret.mint(NOW, [7; 12], &machine);
    assert!(
        token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    );
    let check = |now, machine: &Machine| secret.verify(now, VALID, &token, machine);
    let read = BootToken {
        issued_unix_ms: NOW,
        nonce: [7; 12],
    };
    assert_eq!(check(NOW, &machine), Ok(read));
    assert_eq!(check(NOW + VALID, &machine), Ok(read));
    assert_eq!(check(NOW - TOKEN_SKEW_MS, &machine), Ok(read));
    assert_eq!(check(NOW + VALID + 1, &machine), Err(TokenError::Expired));
    assert_eq!(check(NOW - TOKEN_SKEW_MS - 1, &machine), Err(TokenError::Future));
    let turned = Machine::new(MAC, "33221100-5544-7766-8899-AABBCCDDEEFF");
    assert_eq!(check(NOW, &turned), Ok(read));
    let others = [
        Machine::new([0x52, 0x54, 0, 0, 0, 2], UUID),
        Machine::new(MAC, "00112233-4455-6677-8899-aabbccddeefe"),
        Machine::new(MAC, ""),
    ];
    for other in others {
        assert_eq!(check(NOW, &other), Err(TokenError::Forged));
    }
    let foreign = authority().token_secret();
    assert_eq!(
        foreign.verify(NOW, VALID, &token, &machine),
        Err(TokenError::Forged)
    );
}

#[test]
fn a_token_without_a_uuid_is_for_the_mac_alone_and_that_cannot_be_claimed_later() {
    let secret = authority().token_secret();
    for useless in ["", "00000000-0000-0000-0000-000000000000", "not a uuid"] {
        let token = secret.mint(NOW, [1; 12], &Machine::new(MAC, useless));
        assert!(
            secret
                .verify(NOW, VALID, &token, &Machine::new(MAC, UUID))
                .is_ok()
        );
    }
    // Every single bit counts, the one that says "no UUID" as well.
    let machine = Machine::new(MAC, UUID);
    let token = secret.mint(NOW, [1; 12], &machine);
    let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bent = bytes.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let bent = URL_SAFE_NO_PAD.encode(bent);
        assert!(
            secret.verify(NOW, VALID, &bent, &machine).is_err(),
            "bit {bit} does not matter"
        );
    }
    for bad in ["", "A", "====", &token[1..], &format!("{token}AAAA")] {
        assert_eq!(
            secret.verify(NOW, VALID, bad, &machine),
            Err(TokenError::Malformed)
        );
    }
}

#[test]
fn a_document_is_signed_by_the_key_behind_the_pin_and_never_a_certificate() {
    let authority = authority();
    let signature = authority.sign_bytes(b"words").unwrap();
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, authority.public_key());
    assert!(key.verify(b"words", &signature).is_ok());
    assert!(key.verify(b"other words", &signature).is_err());
    // What it signs as certificates begins with a SEQUENCE; a document that does might be one.
    let refused = authority.sign_bytes(&[0x30, 0x82]);
    assert!(matches!(refused, Err(AuthorityError::LikeACertificate)));
}
