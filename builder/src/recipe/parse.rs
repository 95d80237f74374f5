//! From the text of a recipe to the validated type: the raw serde types, the checks and their words. Looks at no host state.

use std::path::{Path, PathBuf};

use cid_initramfs::{Compression, digest::sha256_hex, plan};
use serde::Deserialize;
use toml::Spanned;

use super::root::RawRoot;
use super::{ExtraFile, ExtraLink, FileChoice, KernelChoice, Loaders, Located, Recipe, RecipeError, nearest};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecipe {
    include: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    suite: Option<Spanned<String>>,
    cmdline: Option<Spanned<String>>,
    max_initrd_bytes: Option<Spanned<u64>>,
    kernel: Option<Spanned<RawKernel>>,
    #[serde(default)]
    modules: RawModules,
    busybox: Option<Spanned<RawFileChoice>>,
    loaders: Option<RawLoaders>,
    firmware: Option<RawFirmware>,
    compression: Option<Spanned<RawCompression>>,
    #[serde(default)]
    file: Vec<RawFile>,
    #[serde(default)]
    link: Vec<RawLink>,
    root: Option<Spanned<RawRoot>>,
}

impl RawRecipe {
    /// The recipe that this one goes on from.
    pub(super) fn include(&self) -> Option<&Spanned<String>> {
        self.include.as_ref()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKernel {
    package: Option<Spanned<String>>,
    #[serde(default)]
    installed: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModules {
    nic: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    other: Vec<Spanned<String>>,
    #[serde(default)]
    exclude: Vec<Spanned<String>>,
    #[serde(default)]
    allow_block_drivers: Vec<Spanned<String>>,
    unpack_below: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFileChoice {
    package: Option<Spanned<String>>,
    file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLoaders {
    shim: Option<Spanned<String>>,
    grub: Option<Spanned<String>>,
    mok: Option<Spanned<String>>,
    ipxe: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFirmware {
    packages: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCompression {
    format: String,
    level: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: Spanned<String>,
    source: PathBuf,
    mode: Option<Spanned<String>>,
    #[serde(default)]
    public: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    path: Spanned<String>,
    target: String,
}
/// A recipe's text, by which a refusal finds its line.
pub(super) struct Context<'a> {
    pub(super) file: &'a Path,
    pub(super) text: &'a str,
    /// Lines of the files read before this one: lines are counted through all of them, as a compiler does, so that one
    /// number names file and line.
    pub(super) before: usize,
}

impl Context<'_> {
    /// `parent` is the included recipe: what this one does not say stands there, and lists go on from its lists.
    pub(super) fn validate(&self, raw: RawRecipe, parent: Option<Recipe>) -> Result<Recipe, RecipeError> {
        let mut recipe = match parent {
            Some(parent) => parent,
            None => self.defaults(&raw)?,
        };
        recipe.file = self.file.to_owned();
        recipe.sources.push((self.before, self.file.to_owned()));
        recipe.sha256 = match recipe.sha256.as_str() {
            "" => sha256_hex(self.text.as_bytes()),
            included => sha256_hex(format!("{included}\n{}", self.text).as_bytes()),
        };
        recipe.name = self.name(raw.name)?;
        if let Some(suite) = raw.suite {
            recipe.suite = self.suite(suite)?;
        }
        if let Some(words) = raw.cmdline {
            let words = self.located(words);
            if words.value.chars().any(char::is_control) {
                let problem = "cmdline has a control character or a line break: remove it";
                return Err(self.error(words.line, problem));
            }
            // Kernel arguments of both: a later word of the same name wins in the kernel, too.
            recipe.cmdline = format!("{} {}", recipe.cmdline, words.value).trim().to_owned();
        }
        if let Some(bytes) = raw.max_initrd_bytes {
            let line = self.line(bytes.span().start);
            recipe.max_initrd_bytes = Some(Located {
                value: bytes.into_inner(),
                line,
            });
        }
        if raw.kernel.is_some() {
            recipe.kernel = self.kernel(raw.kernel)?;
        }
        if raw.busybox.is_some() {
            recipe.busybox = self.busybox(raw.busybox)?;
        }
        if raw.compression.is_some() {
            recipe.compression = self.compression(raw.compression)?;
        }
        recipe.nic.extend(self.all(raw.modules.nic.unwrap_or_default()));
        recipe.other.extend(self.all(raw.modules.other));
        recipe.exclude.extend(self.all(raw.modules.exclude));
        recipe
            .allow_block_drivers
            .extend(self.all(raw.modules.allow_block_drivers));
        recipe.unpack_below = raw.modules.unpack_below.unwrap_or(recipe.unpack_below);
        let loaders = raw.loaders.unwrap_or_default();
        for (given, place) in [
            (loaders.shim, &mut recipe.loaders.shim),
            (loaders.grub, &mut recipe.loaders.grub),
            (loaders.mok, &mut recipe.loaders.mok),
            (loaders.ipxe, &mut recipe.loaders.ipxe),
        ] {
            if given.is_some() {
                *place = self.package(given, "")?;
            }
        }
        for name in raw.firmware.map(|firmware| firmware.packages).unwrap_or_default() {
            recipe.firmware.push(self.package(Some(name), "")?);
        }
        for file in raw.file {
            recipe.files.push(self.extra_file(file)?);
        }
        for link in raw.link {
            recipe.links.push(self.extra_link(link)?);
        }
        if let Some(root) = raw.root {
            recipe.root = Some(self.root(root, recipe.root.take())?);
        }
        Ok(recipe)
    }

    /// A recipe that says nothing yet.
    fn defaults(&self, raw: &RawRecipe) -> Result<Recipe, RecipeError> {
        if raw.modules.nic.is_none() {
            let problem = "no [modules] with nic = [...]: name the NIC drivers, or say include = \"minimal\"";
            return Err(self.error(1 + self.before, problem));
        }
        Ok(Recipe {
            file: PathBuf::new(),
            sources: Vec::new(),
            sha256: String::new(),
            name: String::new(),
            suite: DEFAULT_SUITE.to_owned(),
            cmdline: String::new(),
            max_initrd_bytes: None,
            kernel: self.kernel(None)?,
            nic: Vec::new(),
            other: Vec::new(),
            exclude: Vec::new(),
            unpack_below: DEFAULT_UNPACK_BELOW,
            allow_block_drivers: Vec::new(),
            busybox: self.busybox(None)?,
            loaders: Loaders {
                shim: self.package(None, "shim-signed")?,
                grub: self.package(None, "grub-efi-amd64-signed")?,
                mok: self.package(None, "shim-helpers-amd64-signed")?,
                ipxe: self.package(None, "ipxe")?,
            },
            firmware: Vec::new(),
            compression: self.compression(None)?,
            files: Vec::new(),
            links: Vec::new(),
            root: None,
        })
    }

    fn name(&self, raw: Option<Spanned<String>>) -> Result<String, RecipeError> {
        let stem = self
            .file
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let name = raw.map_or(
            Located {
                value: stem.unwrap_or_default(),
                line: 1 + self.before,
            },
            |name| self.located(name),
        );
        if is_name(&name.value) {
            return Ok(name.value);
        }
        let problem = format!(
            "{:?} cannot be an image's name: use a-z, 0-9, '.', '-' and '_', starting with a letter or digit",
            name.value
        );
        Err(self.error(name.line, problem))
    }

    fn suite(&self, raw: Spanned<String>) -> Result<String, RecipeError> {
        let suite = self.located(raw);
        if is_name(&suite.value) {
            return Ok(suite.value);
        }
        let problem = format!("{:?} is no suite: give one such as \"trixie\"", suite.value);
        Err(self.error(suite.line, problem))
    }

    fn kernel(&self, raw: Option<Spanned<RawKernel>>) -> Result<KernelChoice, RecipeError> {
        let Some(raw) = raw else {
            return Ok(KernelChoice::Package(self.package(None, DEFAULT_KERNEL)?));
        };
        let line = self.line(raw.span().start);
        match raw.into_inner() {
            RawKernel {
                package: Some(package),
                installed: false,
            } => Ok(KernelChoice::Package(self.package(Some(package), "")?)),
            RawKernel {
                package: None,
                installed: true,
            } => Ok(KernelChoice::Installed),
            _ => Err(self.error(
                line,
                "[kernel] needs either package = \"NAME\" or installed = true",
            )),
        }
    }

    fn busybox(&self, raw: Option<Spanned<RawFileChoice>>) -> Result<FileChoice, RecipeError> {
        let Some(raw) = raw else {
            return Ok(FileChoice::Package(self.package(None, DEFAULT_BUSYBOX)?));
        };
        let line = self.line(raw.span().start);
        match raw.into_inner() {
            RawFileChoice {
                package: Some(package),
                file: None,
            } => Ok(FileChoice::Package(self.package(Some(package), "")?)),
            RawFileChoice {
                package: None,
                file: Some(file),
            } => Ok(FileChoice::File(self.beside(&file))),
            _ => Err(self.error(
                line,
                "[busybox] needs either package = \"NAME\" or file = \"PATH\"",
            )),
        }
    }

    /// A package name: it becomes part of a command line and of file names.
    pub(super) fn package(
        &self,
        name: Option<Spanned<String>>,
        default: &str,
    ) -> Result<Located<String>, RecipeError> {
        let name = name.map_or(
            Located {
                value: default.into(),
                line: 1,
            },
            |name| self.located(name),
        );
        let first = name
            .value
            .starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if first
            && name
                .value
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
        {
            return Ok(name);
        }
        Err(self.error(
            name.line,
            format!(
                "{:?} is no package name: use a-z, 0-9, '+', '-' and '.'",
                name.value
            ),
        ))
    }

    fn compression(&self, raw: Option<Spanned<RawCompression>>) -> Result<Compression, RecipeError> {
        let Some(raw) = raw else {
            return Ok(Compression::Zstd(DEFAULT_ZSTD_LEVEL));
        };
        let line = self.line(raw.span().start);
        let raw = raw.into_inner();
        let (compression, range) = match raw.format.as_str() {
            "zstd" => (
                Compression::zstd(raw.level.unwrap_or(DEFAULT_ZSTD_LEVEL)),
                "1 to 19",
            ),
            "gzip" => (
                u32::try_from(raw.level.unwrap_or(9))
                    .ok()
                    .and_then(Compression::gzip),
                "1 to 9",
            ),
            "xz" => (
                u32::try_from(raw.level.unwrap_or(6))
                    .ok()
                    .and_then(Compression::xz),
                "1 to 9",
            ),
            other => {
                return Err(self.error(
                    line,
                    format!("compression format {other:?}: use \"xz\", \"zstd\" or \"gzip\""),
                ));
            }
        };
        compression
            .ok_or_else(|| self.error(line, format!("compression level: {} takes {range}", raw.format)))
    }

    fn extra_file(&self, raw: RawFile) -> Result<ExtraFile, RecipeError> {
        let path = self.image_path(raw.path)?;
        let permissions = match raw.mode {
            None => 0o644,
            Some(mode) => {
                let mode = self.located(mode);
                u32::from_str_radix(&mode.value, 8)
                    .ok()
                    .filter(|bits| *bits <= 0o7777)
                    .ok_or_else(|| {
                        self.error(
                            mode.line,
                            format!("mode {:?}: give octal text such as \"0644\"", mode.value),
                        )
                    })?
            }
        };
        Ok(ExtraFile {
            path,
            source: self.beside(&raw.source),
            permissions,
            public: raw.public,
        })
    }

    fn extra_link(&self, raw: RawLink) -> Result<ExtraLink, RecipeError> {
        let path = self.image_path(raw.path)?;
        if raw.target.is_empty() || raw.target.chars().any(char::is_control) {
            return Err(self.error(path.line, format!("link {}: give it a target", path.value)));
        }
        Ok(ExtraLink {
            path,
            target: raw.target,
        })
    }

    pub(super) fn image_path(&self, raw: Spanned<String>) -> Result<Located<String>, RecipeError> {
        let path = self.located(raw);
        plan::check_path(&path.value).map_err(|error| {
            self.error(
                path.line,
                format!("{error}; give a path inside the image, such as /etc/motd"),
            )
        })?;
        Ok(path)
    }

    pub(super) fn beside(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn all(&self, list: Vec<Spanned<String>>) -> Vec<Located<String>> {
        list.into_iter().map(|item| self.located(item)).collect()
    }

    pub(super) fn located(&self, spanned: Spanned<String>) -> Located<String> {
        let line = self.line(spanned.span().start);
        Located {
            value: spanned.into_inner(),
            line,
        }
    }

    pub(super) fn line(&self, at: usize) -> usize {
        self.before + 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }

    pub(super) fn error(&self, line: usize, problem: impl Into<String>) -> RecipeError {
        RecipeError {
            file: self.file.display().to_string(),
            line: line.saturating_sub(self.before).max(1),
            problem: problem.into(),
        }
    }

    pub(super) fn toml_error(&self, error: &toml::de::Error) -> RecipeError {
        let line = error.span().map_or(1 + self.before, |span| self.line(span.start));
        self.error(line, explain(error.message()))
    }
}

/// The suite, kernel and busybox of a recipe that names none.
const DEFAULT_SUITE: &str = "trixie";
const DEFAULT_KERNEL: &str = "linux-image-amd64";
const DEFAULT_BUSYBOX: &str = "busybox-static";
const DEFAULT_ZSTD_LEVEL: i32 = 9;
/// Measured on 6.12 with every NIC driver: 131 files, 962 kB as shipped, 741 kB when compressed together.
const DEFAULT_UNPACK_BELOW: usize = 16_000;

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
}

/// serde's words for an unknown key (`unknown field `a`, expected one of `b`, `c``) with the nearest known key; other
/// messages on one line.
fn explain(message: &str) -> String {
    let one_line = message.replace('\n', " ");
    let Some(rest) = one_line.strip_prefix("unknown field ") else {
        return one_line;
    };
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next() else {
        return one_line;
    };
    let known: Vec<&str> = quoted.collect();
    match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("unknown key {unknown:?}; the nearest known key is {near:?}"),
        None => format!("unknown key {unknown:?}; remove it"),
    }
}
