//! Finds secrets in what an image holds: by structure, not by words alone, since programs that read keys hold the words,
//! too. Never prints what it found.

use std::io::Read;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{NO_PAD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use cid_initramfs::decompressor;

/// What one place holds that it should not: what, why, and the remedy, on one line without the secret.
pub fn findings(place: &str, bytes: &[u8], known: &[Vec<u8>]) -> Vec<String> {
    let mut found: Vec<&str> = in_bytes(bytes, known);
    let packed = [".xz", ".zst", ".gz"]
        .iter()
        .any(|suffix| place.ends_with(suffix));
    let mut plain = Vec::new();
    if packed
        && let Ok(reader) = decompressor(bytes)
        && reader.take(UNPACKED_LIMIT).read_to_end(&mut plain).is_ok()
    {
        found.extend(in_bytes(&plain, known));
    }
    let name = place.rsplit('/').next().unwrap_or(place);
    if name.ends_with(".key") || (name.starts_with("id_") && !name.ends_with(".pub")) {
        found.push("its name is that of a private key");
    }
    if name.trim_end_matches('-') == "shadow" && String::from_utf8_lossy(bytes).lines().any(has_hash) {
        found.push("a password hash");
    }
    found.sort_unstable();
    found.dedup();
    let remedy =
        "everybody on the network can read an image: leave it out, build again, and replace the secret";
    found
        .iter()
        .map(|what| format!("{place}: {what}; {remedy}"))
        .collect()
}

/// The secrets of a `--known` file, one per line, in each form they may take.
pub fn known(text: &str) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| line.len() >= KNOWN_MIN) {
        let mut raw = vec![line.as_bytes().to_vec()];
        raw.extend(from_hex(line));
        raw.extend(from_base64(line));
        for bytes in raw.into_iter().filter(|bytes| bytes.len() >= KNOWN_MIN) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            forms.push(hex.to_uppercase().into_bytes());
            forms.push(hex.into_bytes());
            // Without padding: what is padded holds it as well.
            forms.push(STANDARD_NO_PAD.encode(&bytes).into_bytes());
            forms.push(URL_SAFE_NO_PAD.encode(&bytes).into_bytes());
            forms.push(bytes);
        }
    }
    forms.sort();
    forms.dedup();
    forms
}

fn in_bytes(bytes: &[u8], known: &[Vec<u8>]) -> Vec<&'static str> {
    let mut found = Vec::new();
    let rest = |at: usize| bytes.get(at..).unwrap_or_default();
    if places(bytes, b"PRIVATE KEY-----").any(|at| is_pem(rest(at + 16))) {
        found.push("a private key (PEM or OpenSSH)");
    }
    let sec1 = |at: usize| {
        let after = rest(at + 37);
        is_random(rest(at + 5))
            && (after.starts_with(&[0xa0, 0x0a, 6]) || after.starts_with(&[0xa1, 0x44, 3]))
    };
    let rsa = |at: usize| rest(at.wrapping_sub(4)).starts_with(&[0x30, 0x82]) && is_random(rest(at + 9));
    if places(bytes, &[2, 1, 1, 4, 0x20]).any(sec1)
        || places(
            bytes,
            &[2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20],
        )
        .any(|at| is_random(rest(at + 14)))
        || places(bytes, &[2, 1, 0, 2, 0x82]).any(rsa)
    {
        found.push("a private key (DER)");
    }
    let token = |at: usize| {
        rest(at + 10)
            .iter()
            .take(16)
            .filter(|byte| is_base64(**byte))
            .count()
            == 16
    };
    if places(bytes, b"cid.token=").any(token) {
        found.push("a boot token");
    }
    if known.iter().any(|secret| places(bytes, secret).next().is_some()) {
        found.push("one of the secrets named with --known");
    }
    found
}

fn places<'a>(bytes: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let finder = memchr::memmem::Finder::new(wanted).into_owned();
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + finder.find(bytes.get(from..)?)?;
        from = at + 1;
        Some(at)
    })
}

/// A line of base64 or of PEM headers follows, not the next word of a program.
fn is_pem(after: &[u8]) -> bool {
    let after = after.strip_prefix(b"\r").unwrap_or(after);
    let Some(body) = after.strip_prefix(b"\n") else {
        return false;
    };
    let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.starts_with(b"Proc-Type:")
        || (line.len() >= 32 && line.iter().all(|byte| is_base64(*byte) || *byte == b'\r'))
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte)
}

/// 32 bytes of a key; templates and tables in programs are not this varied.
fn is_random(bytes: &[u8]) -> bool {
    let Some(bytes) = bytes.get(..32) else {
        return false;
    };
    let mut sorted = bytes.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len() >= 22
}

fn has_hash(line: &str) -> bool {
    line.split(':')
        .nth(1)
        .is_some_and(|hash| hash.trim_start_matches('!').len() >= 13)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16)
                .ok()
                .filter(|_| pair.len() == 2)
        })
        .collect()
}

/// In either alphabet, with or without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    LENIENT.decode(text).ok()
}

/// The last letter may hold stray bits: people cut and paste.
const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, NO_PAD.with_decode_allow_trailing_bits(true));

/// Shorter ones would be found by chance.
const KNOWN_MIN: usize = 8;
const UNPACKED_LIMIT: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Vec<u8> {
        (0..32_u8).map(|n| n.wrapping_mul(37) ^ 0x5a).collect()
    }

    #[test]
    fn each_sort_is_found_and_its_shadow_is_not() {
        let pem = format!("x-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n", "QUJD".repeat(12));
        let sec1 = [&[0x30, 0x77, 2, 1, 1, 4, 0x20][..], &key(), &[0xa0, 0x0a, 6, 8]].concat();
        let ed = [
            &[
                0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
            ][..],
            &key(),
        ]
        .concat();
        let rsa = [
            &[0x30, 0x82, 4, 0xa4, 2, 1, 0, 2, 0x82, 1, 1, 0][..],
            &key(),
            &key(),
        ]
        .concat();
        let token = b"quiet cid.token=AbCdEfGhIjKlMnOpQrSt".to_vec();
        for (what, bytes) in [
            ("pem", pem.into_bytes()),
            ("sec1", sec1),
            ("ed", ed),
            ("rsa", rsa),
            ("token", token),
        ] {
            assert_eq!(findings("/bin/x", &bytes, &[]).len(), 1, "{what}");
        }
        assert_eq!(
            findings("/etc/shadow", b"root:$6$abcdefgh$ijklmnop:1::\n", &[]).len(),
            1
        );
        assert_eq!(findings("/etc/ssl/a.key", b"", &[]).len(), 1);
        assert_eq!(findings("/root/.ssh/id_rsa", b"", &[]).len(), 1);
        let words = b"-----BEGIN PRIVATE KEY----------BEGIN EC PRIVATE KEY-----\0cid.token=\0\x02\x01\x01\x04\x20\xa1\x44\x03\x42\x00";
        assert!(findings("/sbin/cid-agent", words, &[]).is_empty());
        assert!(findings("/etc/shadow", b"root:*:1::\nuser:!:1::\n", &[]).is_empty());
    }

    #[test]
    fn a_known_secret_in_any_form() {
        let bytes = key();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for given in [hex.clone(), URL_SAFE_NO_PAD.encode(&bytes)] {
            let forms = known(&given);
            for held in [
                bytes.clone(),
                hex.clone().into_bytes(),
                STANDARD_NO_PAD.encode(&bytes).into_bytes(),
                URL_SAFE_NO_PAD.encode(&bytes).into_bytes(),
            ] {
                assert_eq!(
                    findings("/x", &[b"aa", held.as_slice(), b"bb"].concat(), &forms).len(),
                    1
                );
            }
            assert!(findings("/x", b"nothing", &forms).is_empty());
        }
        assert_eq!(
            findings("/x", b"plain words here", &known("plain words")).len(),
            1
        );
    }
}
