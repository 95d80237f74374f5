//! The scripts for Windows administrators, under `http://HEAD/windows/`. Must not hold a secret, nor anything that a stranger
//! may not read: whoever asks gets them.

use std::net::Ipv4Addr;

use bytes::Bytes;
use tera::{Context, Tera};

/// The page that names the scripts.
pub const INDEX: &str = "index.html";

const FILES: [(&str, &str); 4] = [
    (INDEX, include_str!("../../templates/windows/index.html")),
    (
        "Enable-CidWake.ps1",
        include_str!("../../templates/windows/Enable-CidWake.ps1"),
    ),
    (
        "Register-CidNight.ps1",
        include_str!("../../templates/windows/Register-CidNight.ps1"),
    ),
    (
        "Unregister-CidNight.ps1",
        include_str!("../../templates/windows/Unregister-CidNight.ps1"),
    ),
];

/// The name as we write it; letters' case does not matter, as on Windows.
pub fn known(name: &str) -> Option<&'static str> {
    FILES
        .iter()
        .map(|(known, _)| *known)
        .find(|known| known.eq_ignore_ascii_case(name))
}

/// A file with the head's address in it, the only thing that is put in. `None` when there is no such file.
pub fn render(name: &str, head: Ipv4Addr) -> Option<Bytes> {
    let (name, text) = FILES.iter().find(|(known, _)| *known == name)?;
    let mut context = Context::new();
    context.insert("head", &head.to_string());
    let text = Tera::one_off(text, &context, false).ok()?;
    Some(if name.ends_with(".ps1") {
        windows_text(&text)
    } else {
        Bytes::from(text)
    })
}

/// Windows PowerShell 5.1 takes a file without a byte order mark for the machine's old code page.
fn windows_text(text: &str) -> Bytes {
    Bytes::from(format!("\u{feff}{}", text.replace('\n', "\r\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn faults(script: &str) -> Vec<String> {
        let mut parser = tree_sitter::Parser::new();
        parser
            .set_language(&tree_sitter_powershell::LANGUAGE.into())
            .unwrap();
        let tree = parser.parse(script, None).unwrap();
        let mut found = Vec::new();
        let mut nodes = vec![tree.root_node()];
        while let Some(node) = nodes.pop() {
            if node.is_error() || node.is_missing() {
                found.push(format!("line {}: {node}", node.start_position().row + 1));
            }
            nodes.extend((0..node.child_count() as u32).filter_map(|index| node.child(index)));
        }
        found
    }

    #[test]
    fn every_script_is_powershell_as_windows_wants_it() {
        for (name, _) in FILES.iter().filter(|(name, _)| name.ends_with(".ps1")) {
            let bytes = render(name, HEAD).unwrap();
            let text = std::str::from_utf8(&bytes).unwrap();
            let script = text.strip_prefix('\u{feff}').expect("a byte order mark");
            assert!(script.is_ascii(), "{name}");
            assert_eq!(
                script.matches('\n').count(),
                script.matches("\r\n").count(),
                "{name}"
            );
            let script = script.replace("\r\n", "\n");
            assert_eq!(faults(&script), Vec::<String>::new(), "{name}");
            for wanted in [
                "Set-StrictMode",
                "SupportsShouldProcess",
                "#Requires -RunAsAdministrator",
                "ErrorActionPreference = 'Stop'",
            ] {
                assert!(script.contains(wanted), "{name}: no {wanted}");
            }
        }
        assert!(!faults("if ($x { Write-Output 'a' }\n").is_empty(), "control");
    }

    #[test]
    fn the_only_thing_put_in_is_the_address() {
        for (name, text) in FILES {
            let rendered = String::from_utf8(render(name, HEAD).unwrap().to_vec()).unwrap();
            assert!(!rendered.contains("{{") && !rendered.contains("{%"), "{name}");
            assert_eq!(
                text.replace("{{ head }}", "10.77.0.1"),
                rendered.replace(['\r', '\u{feff}'], ""),
                "{name}"
            );
        }
    }

    #[test]
    fn names_are_known_in_any_case_and_nothing_else_is() {
        assert_eq!(known("enable-cidwake.PS1"), Some("Enable-CidWake.ps1"));
        assert_eq!(known("../secret"), None);
        assert_eq!(render("other.ps1", HEAD), None);
    }
}
