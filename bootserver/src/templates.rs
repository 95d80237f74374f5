//! Loader scripts from Tera templates. Must not let data change the meaning of a script: what goes in is checked.

use std::path::Path;

use serde::Serialize;
use tera::{Context, Tera};

/// Template of the iPXE script.
pub const IPXE: &str = "boot.ipxe";
/// Template of GRUB's configuration.
pub const GRUB: &str = "grub.cfg";
/// Templates of the scripts for a machine that must not boot, should it ask all the same.
pub const IPXE_HOME: &str = "home.ipxe";
/// See [`IPXE_HOME`].
pub const GRUB_HOME: &str = "home.grub.cfg";

/// Templates for a machine that must not boot from its USB stick: they ask for the stick's removal.
pub const STICK_IPXE_HOME: &str = "usb.ipxe";
/// See [`STICK_IPXE_HOME`].
pub const STICK_GRUB_HOME: &str = "usb.grub.cfg";

const BUILT_IN: [(&str, &str); 6] = [
    (IPXE, include_str!("../../templates/boot.ipxe")),
    (GRUB, include_str!("../../templates/grub.cfg")),
    (IPXE_HOME, include_str!("../../templates/home.ipxe")),
    (GRUB_HOME, include_str!("../../templates/home.grub.cfg")),
    (STICK_IPXE_HOME, include_str!("../../templates/usb.ipxe")),
    (STICK_GRUB_HOME, include_str!("../../templates/usb.grub.cfg")),
];

/// What a template may name.
#[derive(Debug, Clone, Serialize)]
pub struct Values {
    /// The head's address.
    pub head: String,
    /// Image name.
    pub image: String,
    /// [`boot_digest`](cid_protocol::manifest::Manifest::boot_digest) of the image.
    pub digest: String,
    /// Kernel command line in full.
    pub cmdline: String,
    /// The machine's name, or its MAC.
    pub machine: String,
    /// Why it must go home; empty when it boots.
    pub reason: String,
}

/// A template or a value in it is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// An override could not be read.
    #[error("template {file} cannot be read: {why}")]
    Unreadable {
        /// Which.
        file: String,
        /// The system's words.
        why: String,
    },
    /// Syntax, or a name that is not in [`Values`].
    #[error("template {name} is broken: {why}")]
    Broken {
        /// Which.
        name: String,
        /// Tera's words, on one line.
        why: String,
    },
    /// A value holds what a loader would take as its own syntax.
    #[error("the {what} holds {character:?}, which a loader script cannot carry; remove it")]
    Unsafe {
        /// Which value.
        what: &'static str,
        /// What.
        character: char,
    },
}

/// Checked templates.
#[derive(Debug)]
pub struct Templates {
    tera: Tera,
}

impl Templates {
    /// The built-in templates; a file of the same name in `overrides` replaces one. Every template is rendered once, so
    /// that an undefined name is found now and not at night.
    pub fn load(overrides: Option<&Path>) -> Result<Self, TemplateError> {
        let mut tera = Tera::default();
        tera.autoescape_on(Vec::<&str>::new());
        for (name, built_in) in BUILT_IN {
            let text = match overrides
                .map(|folder| folder.join(name))
                .filter(|file| file.exists())
            {
                Some(file) => std::fs::read_to_string(&file).map_err(|error| TemplateError::Unreadable {
                    file: file.display().to_string(),
                    why: error.to_string(),
                })?,
                None => built_in.to_owned(),
            };
            tera.add_raw_template(name, &text)
                .map_err(|error| broken(name, &error))?;
        }
        let templates = Self { tera };
        let word = || "x".to_owned();
        let sample = Values {
            head: word(),
            image: word(),
            digest: word(),
            cmdline: word(),
            machine: word(),
            reason: word(),
        };
        for (name, _) in BUILT_IN {
            templates.render(name, &sample)?;
        }
        Ok(templates)
    }

    /// A script.
    pub fn render(&self, name: &str, values: &Values) -> Result<String, TemplateError> {
        for (what, text) in [
            ("head's address", &values.head),
            ("image name", &values.image),
            ("image's digest", &values.digest),
            ("kernel command line", &values.cmdline),
            ("machine's name", &values.machine),
        ] {
            check_words(what, text)?;
        }
        // The reason is prose of ours that may quote somebody else's words: tamed rather than refused.
        let reason = values
            .reason
            .chars()
            .map(|c| if is_safe(c) { c } else { ' ' })
            .collect();
        let context = Context::from_serialize(&Values {
            reason,
            ..values.clone()
        })
        .map_err(|error| broken(name, &error))?;
        self.tera
            .render(name, &context)
            .map_err(|error| broken(name, &error))
    }
}

fn broken(name: &str, error: &tera::Error) -> TemplateError {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why = format!("{why}: {cause}");
        source = cause.source();
    }
    TemplateError::Broken {
        name: name.to_owned(),
        why: why.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// Printable ASCII without the characters that GRUB or iPXE would expand, join, quote or comment by.
fn is_safe(c: char) -> bool {
    matches!(c, ' '..='~')
        && !matches!(
            c,
            '\'' | '"' | '\\' | '$' | ';' | '|' | '&' | '#' | '<' | '>' | '{' | '}' | '`'
        )
}

/// Refuses a value that would not reach the kernel as it stands.
pub fn check_words(what: &'static str, text: &str) -> Result<(), TemplateError> {
    match text.chars().find(|c| !is_safe(*c)) {
        None => Ok(()),
        Some(character) => Err(TemplateError::Unsafe { what, character }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            head: "10.77.0.1".into(),
            image: "minimal".into(),
            digest: "3f2a9c01-77ab01cd".into(),
            cmdline: "quiet panic=10 BOOTIF=01-52-54-00-00-00-01".into(),
            machine: "lab-a01".into(),
            reason: String::new(),
        }
    }

    #[test]
    fn every_failure_branch_of_every_script_reboots() {
        let templates = Templates::load(None).unwrap();
        for (name, _) in BUILT_IN {
            let script = templates.render(name, &values()).unwrap();
            let last = script
                .lines()
                .map(str::trim)
                .rfind(|line| !line.is_empty() && !line.starts_with('#'))
                .unwrap();
            assert_eq!(last, "reboot", "{name}:\n{script}");
            // `exit` hangs OVMF in its setup screen; nothing of ours may chain to a local loader.
            assert!(
                !script.contains("exit") && !script.contains("chain") && !script.contains("sanboot"),
                "{name}"
            );
        }
    }

    #[test]
    fn data_cannot_change_a_script() {
        let templates = Templates::load(None).unwrap();
        for evil in ["a\nreboot", "a;b", "$x", "a\u{7f}", "ü", "a || b", "'"] {
            let values = Values {
                cmdline: evil.into(),
                ..values()
            };
            assert!(
                matches!(templates.render(GRUB, &values), Err(TemplateError::Unsafe { .. })),
                "{evil:?}"
            );
        }
        let script = templates
            .render(
                GRUB_HOME,
                &Values {
                    reason: "it said \"x\"\nreboot $y".into(),
                    ..values()
                },
            )
            .unwrap();
        assert!(!script.contains("$y") && !script.contains("\"x\""), "{script}");
    }

    #[test]
    fn an_undefined_name_is_found_when_loading() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(GRUB), "echo {{ nonsense }}\nreboot\n").unwrap();
        let error = Templates::load(Some(folder.path())).unwrap_err().to_string();
        assert!(
            error.contains("grub.cfg") && error.contains("nonsense") && !error.contains('\n'),
            "{error}"
        );
    }
}
