//! Shell patterns as modules.alias uses them (fnmatch(3) without flags): `*`, `?`, `[a-f]`, `[!…]`.
//!
//! Outside brackets `-` and `_` are the same, as for modprobe.

/// Whether `text` matches `pattern`. Never recursive: a star remembers where it was tried last.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            retry = Some((rest, text));
            pattern = rest;
            continue;
        }
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        if let Some((pattern_rest, text_rest)) = step(pattern, text) {
            (pattern, text) = (pattern_rest, text_rest);
            continue;
        }
        // Let the last star take one more character.
        let Some((after_star, [_, shorter @ ..])) = retry else {
            return false;
        };
        retry = Some((after_star, shorter));
        (pattern, text) = (after_star, shorter);
    }
}

/// Matches one character; the rests of both, or `None`.
fn step<'a>(pattern: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (&character, text_rest) = text.split_first()?;
    let (&first, pattern_rest) = pattern.split_first()?;
    match first {
        b'?' => Some((pattern_rest, text_rest)),
        b'[' => {
            let (found, pattern_rest) = class(pattern_rest, character)?;
            found.then_some((pattern_rest, text_rest))
        }
        _ => (dash(first) == dash(character)).then_some((pattern_rest, text_rest)),
    }
}

/// Reads a bracket expression behind its `[`: whether it has the character, and what follows `]`.
fn class(mut rest: &[u8], character: u8) -> Option<(bool, &[u8])> {
    let negated = matches!(rest, [b'!' | b'^', ..]);
    if let ([_, inner @ ..], true) = (rest, negated) {
        rest = inner;
    }
    let mut found = false;
    let mut first = true;
    loop {
        match rest {
            [b']', after @ ..] if !first => return Some((found != negated, after)),
            [low, b'-', high, after @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&character);
                rest = after;
            }
            [one, after @ ..] => {
                found |= *one == character;
                rest = after;
            }
            [] => return None,
        }
        first = false;
    }
}

fn dash(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_fnmatch_on_real_aliases() {
        let yes = [
            (
                "pci:v00008086d0000100Esv*sd*bc*sc*i*",
                "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
            ),
            (
                "pci:v*d*sv*sd*bc0Csc03i30*",
                "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30",
            ),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4"),
            ("usb:v0BDAp815[0-9A-F]d*", "usb:v0BDAp8153d3000dc00"),
            ("usb:v0[!1]*", "usb:v0BDA"),
            ("acpi*:PNP0C0C:*", "acpi:PNP0C0C:"),
            (
                "mdio:0000000001??????001?????????????",
                "mdio:00000000010101010011111111111111",
            ),
            ("input:b*v*p*e*-e*1,*k*", "input:b0003v1p2e3-e0,1,4k1"),
            ("net-pf_10", "net_pf-10"),
            ("*", ""),
            ("a*b*c", "axbxbxc"),
            ("[]]", "]"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} should match {text}");
        }
        let no = [
            ("pci:v00008086d0000100Esv*", "pci:v00008086d0000100Fsv00001AF4"),
            ("virtio:d00000001v", "virtio:d00000001v00001AF4"),
            ("usb:v0BDAp815[0-9]d*", "usb:v0BDAp815Ad3000"),
            ("a?", "a"),
            ("a[", "a["),
            ("", "a"),
            ("a*b*c", "axbxb"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        assert!(!matches(&format!("{}z", "a*".repeat(30)), &"a".repeat(4000)));
    }
}
