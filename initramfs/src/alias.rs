//! Device patterns (`pci:v00008086d*`): `fnmatch` as the kernel's module tools use it. Never a regular expression,
//! never more than linear in pattern times text.

/// Whether `text` (a modalias, or a name such as `crc32c`) matches `pattern` (`*`, `?`, `[...]`, `\x`).
///
/// ```
/// use cid_initramfs::alias::matches;
/// assert!(matches("pci:v00008086d0000100Esv*sd*bc*sc*i*", "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"));
/// assert!(matches("usb:v0BDAp815[23]d*", "usb:v0BDAp8153d3100"));
/// assert!(!matches("usb:v0BDAp815[!3]d*", "usb:v0BDAp8153d3100"));
/// ```
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stood and where in the text it began: the only place to return to.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
            continue;
        } else if t == text.len() {
            return p == pattern.len();
        } else {
            one(&pattern[p..], text[t])
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((after_star, from))) => {
                p = after_star;
                t = from + 1;
                star = Some((after_star, from + 1));
            }
            (None, None) => return false,
        }
    }
}

/// Bytes of `pattern` that matched the one byte `value`, or None.
fn one(pattern: &[u8], value: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == value).then_some(2),
        [b'[', set @ ..] => match bracket(set, value) {
            Some((true, width)) => Some(1 + width),
            Some((false, _)) => None,
            // No closing bracket: the `[` is itself.
            None => (value == b'[').then_some(1),
        },
        [literal, ..] => (*literal == value).then_some(1),
    }
}

/// `0-9a]...`: whether `value` is in the set, and the bytes up to and with the `]`. None without a `]`.
fn bracket(set: &[u8], value: u8) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let start = at;
    let mut found = false;
    loop {
        let low = *set.get(at)?;
        if low == b']' && at > start {
            return Some((found != negated, at + 1));
        }
        match (set.get(at + 1), set.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                found |= (low..=high).contains(&value);
                at += 3;
            }
            _ => {
                found |= low == value;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn table() {
        let yes = [
            ("", ""),
            ("*", ""),
            ("**", "abc"),
            ("a*c", "abc"),
            ("a*c", "ac"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[]x]", "]"),
            ("[^a]", "b"),
            ("*bc*bcd", "abcbcbcd"),
            ("a\\*", "a*"),
            ("[", "["),
            ("a[", "a["),
            ("dmi*:svn[Aa]cer*:", "dmi:bvn:svnAcer:pn:"),
        ];
        let no = [
            ("", "a"),
            ("a", ""),
            ("a?c", "ac"),
            ("[a-c]x", "dx"),
            ("a*c", "ab"),
            ("[!a]", "a"),
            ("a\\*", "ab"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_stay_quick() {
        assert!(!matches(&"a*".repeat(100), &"b".repeat(5000)));
        assert!(!matches(&("*a".repeat(50) + "b"), &"a".repeat(5000)));
    }

    proptest::proptest! {
        #[test]
        fn plain_text_matches_itself_and_star_matches_all(text in "[a-zA-Z0-9:._-]{0,40}") {
            proptest::prop_assert!(matches(&text, &text));
            proptest::prop_assert!(matches("*", &text));
            let longer = format!("{text}x");
            proptest::prop_assert!(!matches(&text, &longer));
        }

        #[test]
        fn nothing_panics(pattern in "[\\[\\]a*?\\\\!^-]{0,20}", text in "[\\[\\]a*?-]{0,20}") {
            let _ = matches(&pattern, &text);
        }
    }
}
