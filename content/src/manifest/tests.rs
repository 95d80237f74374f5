//! What a node takes, and each thing that it must not.

use cid_trust::Authority;
use proptest::prelude::*;

use super::*;

const PROMISE: Promise<'_> = Promise {
    image: "compute@3",
    sequence: 7,
};

fn manifest() -> RootManifest {
    RootManifest {
        image: "compute@3".into(),
        sequence: 7,
        format: Format::Erofs,
        shape: Shape::of(50 << 20).unwrap(),
        tree_root: Digest([1; 32]),
        kernel: Digest([2; 32]),
        initrd: Digest([3; 32]),
        needed_ram_bytes: 600 << 20,
    }
}

fn sign(authority: &Authority, manifest: &RootManifest) -> Signed {
    let signature = authority.sign_bytes(&manifest.encode().unwrap()).unwrap();
    Signed::new(manifest, authority.public_key(), signature).unwrap()
}

#[test]
fn what_the_authority_behind_the_pin_signed_is_taken() {
    let authority = Authority::generate().unwrap();
    let pin = *authority.pin().as_bytes();
    let signed = Signed::decode(&sign(&authority, &manifest()).encode()).unwrap();
    assert_eq!(signed.verify(&pin, PROMISE), Ok(manifest()));
    // Newer than promised is fine: the head signed once more since.
    let older_promise = Promise {
        sequence: 6,
        ..PROMISE
    };
    assert_eq!(signed.verify(&pin, older_promise), Ok(manifest()));
}

#[test]
fn everything_else_is_refused_with_its_reason() {
    let authority = Authority::generate().unwrap();
    let pin = *authority.pin().as_bytes();
    let signed = sign(&authority, &manifest());
    let other = Authority::generate().unwrap();
    assert_eq!(
        sign(&other, &manifest()).verify(&pin, PROMISE),
        Err(Refusal::OtherKey)
    );
    // The right key named, another one's signature.
    let forged = Signed {
        signature: sign(&other, &manifest()).signature,
        ..signed.clone()
    };
    assert_eq!(forged.verify(&pin, PROMISE), Err(Refusal::BadSignature));
    let newer = Promise {
        sequence: 8,
        ..PROMISE
    };
    let refusal = signed.verify(&pin, newer).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the manifest of compute@3 is older than promised: sequence 7, promised 8"
    );
    let elsewhere = Promise {
        image: "render@3",
        ..PROMISE
    };
    assert!(matches!(
        signed.verify(&pin, elsewhere),
        Err(Refusal::OtherImage { .. })
    ));
    // A certificate that the same key signed is no manifest, whatever is cut out of it.
    let rubbish = Signed {
        signature: authority.sign_bytes(b"something else").unwrap(),
        manifest: b"something else".to_vec(),
        ..signed
    };
    assert!(matches!(
        rubbish.verify(&pin, PROMISE),
        Err(Refusal::Malformed(_))
    ));
}

#[test]
fn a_flipped_bit_in_any_byte_is_refused() {
    let authority = Authority::generate().unwrap();
    let pin = *authority.pin().as_bytes();
    let bytes = sign(&authority, &manifest()).encode();
    // One in each byte, another one each time.
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let taken = Signed::decode(&flipped).and_then(|signed| signed.verify(&pin, PROMISE));
        assert!(taken.is_err(), "byte {at}");
    }
    for end in 0..bytes.len() {
        let taken = Signed::decode(&bytes[..end]).and_then(|signed| signed.verify(&pin, PROMISE));
        assert!(taken.is_err(), "cut at {end}");
    }
    assert!(Signed::decode(&[0; MAX_SIGNED + 1]).is_err());
}

#[test]
fn a_manifest_is_written_in_one_way_only() {
    let text = manifest().to_string();
    assert_eq!(RootManifest::decode(text.as_bytes()), Ok(manifest()));
    for (from, to) in [
        ("sequence 7", "sequence 07"),
        ("sequence 7", "sequence +7"),
        ("sequence 7", "sequence -7"),
        ("image compute@3", "image compute@03"),
        ("image compute@3", "image compute@0"),
        ("image compute@3", "image compute"),
        ("image compute@3", "image ../x@3"),
        ("image compute@3", "image -x@3"),
        ("format erofs", "format ext4"),
        ("chunk-bytes 262144", "chunk-bytes 262145"),
        ("bytes 52428800", "bytes 0"),
        ("kernel 0202", "kernel 020g"),
        ("\nkernel", "\r\nkernel"),
        ("manifest 1", "manifest 2"),
        ("needed-ram-bytes 629145600\n", "needed-ram-bytes 629145600"),
        ("needed-ram-bytes 629145600\n", "needed-ram-bytes 629145600\n\n"),
        ("needed-ram-bytes 629145600\n", ""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        assert!(RootManifest::decode(changed.as_bytes()).is_err(), "{to:?}");
    }
}

proptest! {
    #[test]
    fn what_is_read_is_written_as_it_came(bytes in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index) {
        // Rubbish, and a good text with rubbish in its place.
        let text = manifest().to_string().into_bytes();
        let cut = at.index(text.len());
        for bytes in [bytes.clone(), [&text[..cut], &bytes].concat()] {
            if let Ok(manifest) = RootManifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode().unwrap(), bytes.clone());
            }
            if let Ok(signed) = Signed::decode(&[&MAGIC[..], &bytes].concat()) {
                prop_assert_eq!(&signed.encode()[8..], &bytes[..]);
                prop_assert!(signed.verify(&[0; 32], PROMISE).is_err());
            }
        }
    }
}
