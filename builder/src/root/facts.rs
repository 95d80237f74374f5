//! Which packages a tree holds, from its own package database (dpkg's or apk's), and under which licences, from
//! machine-readable copyright files (DEP-5). Guesses nothing: what is not readable by machine is `see copyright`.

use std::collections::BTreeSet;

use super::PackageFacts;
use super::tree::Tree;

/// Sorted by name; empty without a database that we know.
pub(super) fn packages(tree: &Tree) -> anyhow::Result<Vec<PackageFacts>> {
    let mut packages = Vec::new();
    if let Some(status) = tree.read("var/lib/dpkg/status")? {
        for stanza in String::from_utf8_lossy(&status).split("\n\n") {
            packages.extend(installed(stanza).map(|mut facts| {
                facts.licence = licence(tree, &facts.name);
                facts
            }));
        }
    }
    if let Some(database) = tree.read("lib/apk/db/installed")? {
        for stanza in String::from_utf8_lossy(&database).split("\n\n") {
            let field = |key| {
                stanza
                    .lines()
                    .find_map(|line: &str| line.strip_prefix(key))
                    .map(str::to_owned)
            };
            if let (Some(name), Some(version)) = (field("P:"), field("V:")) {
                packages.push(PackageFacts {
                    name,
                    version,
                    architecture: field("A:").unwrap_or_default(),
                    licence: field("L:").unwrap_or_else(|| UNREADABLE.to_owned()),
                });
            }
        }
    }
    packages.sort();
    Ok(packages)
}

fn installed(stanza: &str) -> Option<PackageFacts> {
    let field = |key: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
            .map(str::to_owned)
    };
    field("Status")?.ends_with(" installed").then_some(())?;
    Some(PackageFacts {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
        licence: String::new(),
    })
}

fn licence(tree: &Tree, package: &str) -> String {
    match tree.read(&format!("usr/share/doc/{package}/copyright")) {
        Ok(Some(text)) => dep5(&String::from_utf8_lossy(&text)).unwrap_or_else(|| UNREADABLE.to_owned()),
        _ => NO_FILE.to_owned(),
    }
}

/// The short names of the licences that `Files` paragraphs (and the header) name.
fn dep5(text: &str) -> Option<String> {
    let mut paragraphs = text.split("\n\n").map(str::trim_start);
    let header = paragraphs.next()?;
    if !header.starts_with("Format:") {
        return None;
    }
    let named = |paragraph: &str| {
        let line = paragraph.lines().find_map(|line| line.strip_prefix("License:"))?;
        Some(line.trim().to_owned()).filter(|name| !name.is_empty())
    };
    let files = paragraphs.filter(|paragraph| paragraph.lines().any(|line| line.starts_with("Files:")));
    let names: BTreeSet<String> = std::iter::once(header).chain(files).filter_map(named).collect();
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(" and "))
}

const UNREADABLE: &str = "see copyright";
const NO_FILE: &str = "unknown";

#[cfg(test)]
mod tests {
    use super::super::tree::Entry;
    use super::*;

    #[test]
    fn dpkg_with_and_without_machine_readable_copyright() {
        let mut tree = Tree::default();
        let status = "Package: b\nStatus: install ok installed\nVersion: 1:2\nArchitecture: amd64\n\nPackage: a\nStatus: install ok installed\nVersion: 3\nArchitecture: all\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n";
        let dep5 = "Format: https://x\nUpstream-Name: b\n\nFiles: *\nCopyright: x\nLicense: GPL-2+\n text\n\nFiles: doc\nLicense: Expat\n\nLicense: BSD\n";
        for (name, text) in [
            ("var/lib/dpkg/status", status),
            ("usr/share/doc/b-base/copyright", dep5),
            ("usr/share/doc/a/copyright", "This is free.\n"),
        ] {
            tree.put(name, Entry::text(text, 0o644)).unwrap();
        }
        // Debian's packages share their folder by links.
        tree.put(
            "usr/share/doc/b",
            Entry::new(super::super::tree::Kind::Link("b-base".into()), 0o777),
        )
        .unwrap();
        let facts = packages(&tree).unwrap();
        let lines: Vec<String> = facts
            .iter()
            .map(|p| format!("{} {} {} {}", p.name, p.version, p.architecture, p.licence))
            .collect();
        assert_eq!(lines, ["a 3 all see copyright", "b 1:2 amd64 Expat and GPL-2+"]);
    }
}
