//! Manual pages and shell completions out of a program's table of commands, so that they cannot say anything else than
//! `--help`. Must never hold a sentence about one of the programs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
pub use clap_mangen::roff;
use roff::{Roff, bold, roman};

/// What every program of ours can say about itself. Flattened into its subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Documents {
    /// Print the completion script of a shell (the Debian package has installed those of bash, zsh and fish).
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Folder; it must exist.
        folder: PathBuf,
    },
}

impl Documents {
    /// Does what was typed, for the program whose table is `C`; `section` is its manual pages' (`1`, `8`).
    ///
    /// # Errors
    /// Standard output or the folder cannot be written.
    pub fn write<C: CommandFactory>(&self, section: &str) -> io::Result<()> {
        match self {
            Self::Completions { shell } => completions(C::command(), *shell, &mut io::stdout().lock()),
            Self::Man { folder } => pages(C::command(), section, folder),
        }
    }
}

/// Writes the completion script. In memory first: clap_complete panics when its writer fails.
///
/// # Errors
/// Those of `out`.
pub fn completions(mut command: Command, shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

/// Writes `NAME.SECTION`, and `NAME-SUBCOMMAND.SECTION` for each subcommand that is not hidden.
///
/// # Errors
/// The folder cannot be written.
pub fn pages(command: Command, section: &str, folder: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    // Subcommands do not carry it by themselves.
    let version = command.get_version().unwrap_or_default().to_owned();
    write_with_subcommands(command, &version, section, folder)
}

fn write_with_subcommands(command: Command, version: &str, section: &str, folder: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write_with_subcommands(subcommand.clone(), version, section, folder)?;
    }
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    std::fs::write(
        folder.join(format!("{name}.{section}")),
        page(command, version, section)?,
    )
}

fn page(command: Command, version: &str, section: &str) -> io::Result<Vec<u8>> {
    let notes = command
        .get_after_long_help()
        .or(command.get_after_help())
        .map(ToString::to_string);
    let hidden = |mut all: Box<dyn Iterator<Item = bool>>| all.all(|hidden| hidden);
    let no_options = hidden(Box::new(
        command
            .get_arguments()
            .map(|argument| argument.is_hide_set())
            .collect::<Vec<_>>()
            .into_iter(),
    ));
    let no_subcommands = hidden(Box::new(
        command
            .get_subcommands()
            .map(Command::is_hide_set)
            .collect::<Vec<_>>()
            .into_iter(),
    ));
    let man = Man::new(command)
        .section(section)
        .source(format!("CID {version}"))
        .manual("CID");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    if !no_options {
        man.render_options_section(&mut out)?;
    }
    if !no_subcommands {
        man.render_subcommands_section(&mut out)?;
    }
    if let Some(notes) = notes {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]).control("nf", []);
        for line in notes.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
        roff.to_writer(&mut out)?;
    }
    Ok(out)
}

/// The keys of one table of a file.
#[derive(Debug, Clone)]
pub struct KeySection {
    /// Heading.
    pub heading: String,
    /// What stands above the keys; may be empty.
    pub about: String,
    /// Key with its type, and what is said about it.
    pub keys: Vec<(String, String)>,
}

/// A page about a file: its keys in order, each with what is said about it.
#[derive(Debug, Clone)]
pub struct FilePage {
    /// Title, e.g. `head.toml`.
    pub name: String,
    /// One line.
    pub about: String,
    /// Paragraphs before the keys.
    pub description: Vec<String>,
    /// Sections of keys.
    pub sections: Vec<KeySection>,
    /// An example of the whole file.
    pub example: String,
    /// `cidhead(8)` and the like.
    pub see_also: String,
}

impl FilePage {
    /// Writes the page of section 5.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn render(&self, version: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut page = Roff::new();
        let source = format!("CID {version}");
        page.control("TH", [self.name.as_str(), "5", "", source.as_str(), "CID"]);
        page.control("SH", ["NAME"])
            .text([roman(format!("{} - {}", self.name, self.about))]);
        page.control("SH", ["DESCRIPTION"]);
        for paragraph in &self.description {
            page.control("PP", []).text([roman(paragraph)]);
        }
        for section in &self.sections {
            page.control("SH", [section.heading.as_str()]);
            if !section.about.is_empty() {
                page.text([roman(&section.about)]);
            }
            for (key, text) in &section.keys {
                page.control("TP", []).text([bold(key)]).text([roman(text)]);
            }
        }
        page.control("SH", ["EXAMPLE"]).control("nf", []);
        for line in self.example.lines() {
            page.text([roman(line)]);
        }
        page.control("fi", [])
            .control("SH", ["SEE ALSO"])
            .text([roman(&self.see_also)]);
        page.to_writer(out)
    }
}
