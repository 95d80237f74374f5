//! Which package archive this machine uses, from its own package client's configuration: both the one-line `.list`
//! form and deb822 `.sources`. No archive's name is written into this project; never talks to the network.

use std::path::{Path, PathBuf};

/// A Debian archive and the keys that sign it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Base URI as configured.
    pub uri: String,
    /// `signed-by` of the entry, or the distribution's own keyring.
    pub keyring: String,
}

/// One configured entry, before it is known whether it is Debian's main archive.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Entry {
    binary: bool,
    enabled: bool,
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

/// The machine's Debian archive, read below `etc` (normally `/etc/apt`).
pub fn configured_archive(etc: &Path) -> Option<Archive> {
    let mut files: Vec<PathBuf> = vec![etc.join("sources.list")];
    let mut parts: Vec<PathBuf> = std::fs::read_dir(etc.join("sources.list.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    parts.sort();
    files.extend(parts);
    let mut entries = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => entries.extend(text.lines().filter_map(one_line)),
            Some("sources") => entries.extend(deb822(&text)),
            _ => {}
        }
    }
    entries.iter().find_map(archive)
}

/// Debian's main archive has component `main` and a suite that Debian has; its security archive's suites end in
/// `-security` and hold no complete set of packages; other vendors have their own suites.
fn archive(entry: &Entry) -> Option<Archive> {
    let main = entry.components.iter().any(|component| component == "main");
    let suite = entry.suites.iter().any(|suite| SUITES.contains(&suite.as_str()));
    if !(entry.binary && entry.enabled && main && suite) {
        return None;
    }
    let keyring = entry
        .signed_by
        .clone()
        .unwrap_or_else(|| DEFAULT_KEYRING.to_owned());
    let uri = entry.uris.first()?.trim_end_matches('/').to_owned();
    // This goes into a line of a configuration file.
    let plain = |text: &str| {
        !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == ']')
    };
    (plain(&uri) && plain(&keyring)).then_some(Archive { uri, keyring })
}

/// Brought by `debian-archive-keyring`, which Debian's own package client depends on.
pub const DEFAULT_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const SUITES: &[&str] = &[
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// `deb [signed-by=/x arch=amd64] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<Entry> {
    let line = line.split('#').next()?.trim();
    let (kind, mut rest) = line.split_once(char::is_whitespace)?;
    let mut signed_by = None;
    rest = rest.trim_start();
    if let Some(after) = rest.strip_prefix('[') {
        let (options, after) = after.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Entry {
        binary: kind == "deb",
        enabled: true,
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.filter(|path| path.starts_with('/')),
    })
}

/// Stanzas of `Key: values`, continued by lines that start with white space.
fn deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !fields.is_empty() {
                entries.push(stanza(&std::mem::take(&mut fields)));
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    entries
}

fn stanza(fields: &[(String, String)]) -> Entry {
    let field = |key: &str| {
        fields
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    };
    let words = |key: &str| {
        field(key)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    Entry {
        binary: words("types").iter().any(|kind| kind == "deb"),
        enabled: !matches!(field("enabled"), Some("no" | "false" | "off" | "0")),
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        // An embedded key block is not a path; the distribution's own keyring is used then.
        signed_by: field("signed-by")
            .filter(|path| path.starts_with('/'))
            .map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: Option<(&str, &str)>) {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            std::fs::write(etc.path().join(name), text).unwrap();
        }
        let expected = expected.map(|(uri, keyring)| Archive {
            uri: uri.into(),
            keyring: keyring.into(),
        });
        assert_eq!(configured_archive(etc.path()), expected);
    }

    #[test]
    fn one_line_form() {
        check(
            &[(
                "sources.list",
                "# deb http://old bookworm main\ndeb-src http://a.test/debian bookworm main\ndeb http://a.test/debian/ bookworm main contrib # ours\n",
            )],
            Some(("http://a.test/debian", DEFAULT_KEYRING)),
        );
        check(
            &[(
                "sources.list.d/d.list",
                "deb [arch=amd64 signed-by=/k/ring.gpg] https://a.test/debian trixie main\n",
            )],
            Some(("https://a.test/debian", "/k/ring.gpg")),
        );
    }

    #[test]
    fn deb822_form() {
        check(
            &[(
                "sources.list.d/debian.sources",
                "Types: deb\n# a comment\nURIs: http://a.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/x.gpg\n\nTypes: deb\nURIs: http://s.test/sec\nSuites: bookworm-security\nComponents: main\n",
            )],
            Some(("http://a.test/debian", "/usr/share/keyrings/x.gpg")),
        );
        check(
            &[(
                "sources.list.d/debian.sources",
                "Types: deb deb-src\nURIs:\n http://a.test/debian\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n",
            )],
            Some(("http://a.test/debian", DEFAULT_KEYRING)),
        );
    }

    #[test]
    fn what_is_not_debians_archive() {
        check(&[], None);
        check(
            &[(
                "sources.list.d/n.sources",
                "Types: deb\nURIs: https://v.test/n\nSuites: nodistro\nComponents: main\n",
            )],
            None,
        );
        check(
            &[(
                "sources.list.d/g.list",
                "deb https://v.test/apt cloud-sdk-bookworm main\n",
            )],
            None,
        );
        check(
            &[(
                "sources.list.d/s.list",
                "deb http://s.test/debian-security bookworm-security main\n",
            )],
            None,
        );
        check(
            &[(
                "sources.list.d/d.sources",
                "Types: deb\nEnabled: no\nURIs: http://a.test\nSuites: sid\nComponents: main\n",
            )],
            None,
        );
        check(&[("sources.list", "deb http://evil]x trixie main\n")], None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[a-zA-Z:#\\[\\]= \\n/.-]{0,300}") {
            let _ = deb822(&text);
            let _: Vec<_> = text.lines().filter_map(one_line).collect();
        }
    }
}
