//! Recipes: TOML text -> raw serde type -> validated type. Each refusal is one line naming file, line and remedy.
//! Conversion looks at no host state; whether a module exists is asked later, with the line still known.

mod parse;
pub mod root;

use std::path::{Path, PathBuf};

use cid_initramfs::Compression;

use parse::{Context, RawRecipe};
use root::RootRecipe;

/// A refused recipe. The recipe's author is at fault; nothing was built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct RecipeError {
    /// The recipe's file as given.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong, and what to do about it.
    pub problem: String,
}

/// A value with the line it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Line, counted from 1 through the recipe and what it includes; [`Recipe::error`] finds the file.
    pub line: usize,
}

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelChoice {
    /// A package of the recipe's suite; a package that only depends on the newest kernel is followed.
    Package(Located<String>),
    /// The running machine's own kernel.
    Installed,
}

/// Where a program file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChoice {
    /// A package of the recipe's suite.
    Package(Located<String>),
    /// A file, relative to the recipe.
    File(PathBuf),
}

/// Boot loaders, each from a package of the suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaders {
    /// Brings `shimx64.efi.signed`.
    pub shim: Located<String>,
    /// Brings `grubnetx64.efi.signed`.
    pub grub: Located<String>,
    /// Brings `mmx64.efi.signed` (MokManager).
    pub mok: Located<String>,
    /// Brings `undionly.kpxe`.
    pub ipxe: Located<String>,
}

/// A file that the recipe adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraFile {
    /// Where it goes.
    pub path: Located<String>,
    /// Where it is, relative to the recipe.
    pub source: PathBuf,
    /// Permission bits.
    pub permissions: u32,
    /// Goes in although it looks like a secret: everybody on the network can read an image.
    pub public: bool,
}

/// A symbolic link that the recipe adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraLink {
    /// Where it goes.
    pub path: Located<String>,
    /// What it points at.
    pub target: String,
}

/// A validated recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The file it was read from.
    pub file: PathBuf,
    /// Every file it was read from, with the number of lines in those before it.
    pub sources: Vec<(usize, PathBuf)>,
    /// SHA-256 of that file, and of what it includes.
    pub sha256: String,
    /// Name of the image.
    pub name: String,
    /// Suite of the package archive, e.g. `trixie`.
    pub suite: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Bytes that `initrd.img` may have; a larger one is not published.
    pub max_initrd_bytes: Option<Located<u64>>,
    /// Kernel and modules.
    pub kernel: KernelChoice,
    /// NIC drivers: listed in the manifest.
    pub nic: Vec<Located<String>>,
    /// Other modules.
    pub other: Vec<Located<String>>,
    /// Selectors of modules that the two lists above do not pick.
    pub exclude: Vec<Located<String>>,
    /// Modules of fewer bytes (compressed, as shipped) are stored unpacked: they resemble each other, and compressed
    /// together they take less of the archive than each by itself, but more of the builder's time and the node's RAM.
    pub unpack_below: usize,
    /// Modules that may make block devices.
    pub allow_block_drivers: Vec<Located<String>>,
    /// The static busybox.
    pub busybox: FileChoice,
    /// Boot loaders for UEFI.
    pub loaders: Loaders,
    /// Packages whose firmware files go in, as far as the image's drivers name them.
    pub firmware: Vec<Located<String>>,
    /// How the archive is compressed.
    pub compression: Compression,
    /// Added files.
    pub files: Vec<ExtraFile>,
    /// Added links.
    pub links: Vec<ExtraLink>,
    /// Stage 2, when there is one.
    pub root: Option<RootRecipe>,
}

/// What the recipe came to, defaults filled in: printed before a long build.
impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kernel = match &self.kernel {
            KernelChoice::Package(name) => format!("package {} of {}", name.value, self.suite),
            KernelChoice::Installed => "the installed one".to_owned(),
        };
        let busybox = match &self.busybox {
            FileChoice::Package(name) => format!("package {} of {}", name.value, self.suite),
            FileChoice::File(file) => file.display().to_string(),
        };
        let compression = match self.compression {
            Compression::Gzip(level) => format!("gzip, level {level}"),
            Compression::Zstd(level) => format!("zstd, level {level}"),
            Compression::Xz(level) => {
                format!("xz, level {level} for our programs, 9 for what packages bring")
            }
        };
        let Loaders {
            shim,
            grub,
            mok,
            ipxe,
        } = &self.loaders;
        writeln!(
            f,
            "recipe       {} (SHA-256 {})",
            self.file.display(),
            self.sha256
        )?;
        writeln!(f, "image        {}", self.name)?;
        writeln!(f, "kernel       {kernel}")?;
        writeln!(f, "cmdline      {:?}", self.cmdline)?;
        writeln!(f, "busybox      {busybox}")?;
        writeln!(
            f,
            "loaders      {}, {}, {}, {} of {}",
            shim.value, grub.value, mok.value, ipxe.value, self.suite
        )?;
        let (nic, other, exclude) = (self.nic.len(), self.other.len(), self.exclude.len());
        writeln!(
            f,
            "modules      {nic} selectors of NIC drivers, {other} others, {exclude} exclusions"
        )?;
        for (what, list) in [
            ("may be disks", &self.allow_block_drivers),
            ("firmware", &self.firmware),
        ] {
            if !list.is_empty() {
                let names: Vec<&str> = list.iter().map(|name| name.value.as_str()).collect();
                writeln!(f, "{what:<12} {}", names.join(", "))?;
            }
        }
        writeln!(f, "unpacked     modules below {} bytes", self.unpack_below)?;
        writeln!(
            f,
            "added        {} files, {} links",
            self.files.len(),
            self.links.len()
        )?;
        write!(f, "compression  {compression}")?;
        match &self.root {
            Some(root) => write!(f, "\n{root}"),
            None => Ok(()),
        }
    }
}

impl Recipe {
    /// Reads and validates the file, and the recipes that it includes.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| anyhow::anyhow!("recipe {}: {error}", file.display()))?;
        Ok(Self::parse(file, &text)?)
    }

    /// Validates `text`, which came from `file`; reads what it includes.
    pub fn parse(file: &Path, text: &str) -> Result<Self, RecipeError> {
        Self::parse_after(file, text, 0, 0)
    }

    fn parse_after(file: &Path, text: &str, before: usize, depth: usize) -> Result<Self, RecipeError> {
        let context = Context { file, text, before };
        let raw: RawRecipe = toml::from_str(text).map_err(|error| context.toml_error(&error))?;
        let Some(include) = raw.include() else {
            return context.validate(raw, None);
        };
        let line = context.line(include.span().start);
        let name = include.get_ref();
        if depth >= MAX_INCLUDES {
            let problem =
                format!("include {name:?}: {MAX_INCLUDES} recipes include one another; break the circle");
            return Err(context.error(line, problem));
        }
        // A name is a recipe beside this one; a path is relative to it.
        let path = match name.ends_with(".toml") {
            true => PathBuf::from(name),
            false => PathBuf::from(format!("{name}.toml")),
        };
        let path = context.beside(&path);
        let included = std::fs::read_to_string(&path).map_err(|error| {
            let problem = format!(
                "include {name:?}: {}: {error}; name a recipe beside this one",
                path.display()
            );
            context.error(line, problem)
        })?;
        let parent = Self::parse_after(&path, &included, before + text.lines().count(), depth + 1)?;
        context.validate(raw, Some(parent))
    }

    /// A refusal that points at `line`, in the file which that line is of.
    pub fn error(&self, line: usize, problem: impl Into<String>) -> RecipeError {
        let source = self.sources.iter().filter(|(before, _)| *before < line).max();
        let (before, file) = source.map_or((0, &self.file), |(before, file)| (*before, file));
        RecipeError {
            file: file.display().to_string(),
            line: line - before,
            problem: problem.into(),
        }
    }
}

/// How deep recipes may include one another.
const MAX_INCLUDES: usize = 8;

/// The one of `known` that is most like `word`.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|candidate| strsim::damerau_levenshtein(word, candidate))
}

#[cfg(test)]
mod tests;
