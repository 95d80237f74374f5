//! What a stranger may show of itself: a boot token, a certificate, a pin. None of it is believed, none of it panics.
#![no_main]

use std::sync::LazyLock;

use cid_trust::rustls::pki_types::CertificateDer;
use cid_trust::{Authority, Machine, Peer, Pin, TokenSecret};
use libfuzzer_sys::fuzz_target;

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::generate().expect("random numbers"));
static SECRET: LazyLock<TokenSecret> = LazyLock::new(|| AUTHORITY.token_secret());

fuzz_target!(|bytes: &[u8]| {
    let certificate = CertificateDer::from(bytes);
    let _ = Peer::of(&certificate);
    assert_ne!(Pin::of(&certificate), Some(AUTHORITY.pin()));
    let signed = AUTHORITY.sign(&Peer::Admin, bytes);
    let text = String::from_utf8_lossy(bytes);
    let machine = Machine::new([2, 0, 0, 0, 0, 1], &text);
    assert!(SECRET.verify(1_800_000_000_000, 120_000, &text, &machine).is_err());
    let _ = text.parse::<Pin>();
    // What looks like a key is signed; the certificate says what it was asked to say.
    if let Ok(signed) = signed {
        assert_eq!(Peer::of(&CertificateDer::from(signed)), Ok(Peer::Admin));
    }
});
