//! From the text of a recipe to the validated type: the raw serde types, the checks and their words. Looks at no host state.

use std::path::{Path, PathBuf};

use cid_initramfs::{Compression, digest::sha256_hex, plan};
use serde::Deserialize;
use toml::Spanned;

use super::{ExtraFile, ExtraLink, FileChoice, KernelChoice, Loaders, Located, Recipe, RecipeError, nearest};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecipe {
    name: Option<Spanned<String>>,
    suite: Option<Spanned<String>>,
    cmdline: Option<Spanned<String>>,
    max_initrd_bytes: Option<Spanned<u64>>,
    kernel: Option<Spanned<RawKernel>>,
    modules: RawModules,
    busybox: Option<Spanned<RawFileChoice>>,
    loaders: Option<RawLoaders>,
    firmware: Option<RawFirmware>,
    compression: Option<Spanned<RawCompression>>,
    #[serde(default)]
    file: Vec<RawFile>,
    #[serde(default)]
    link: Vec<RawLink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKernel {
    package: Option<Spanned<String>>,
    #[serde(default)]
    installed: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModules {
    nic: Vec<Spanned<String>>,
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

#[derive(Deserialize)]
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
}

impl Context<'_> {
    pub(super) fn validate(&self, raw: RawRecipe) -> Result<Recipe, RecipeError> {
        let stem = self
            .file
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        let name = raw
            .name
            .map_or(Located { value: stem, line: 1 }, |name| self.located(name));
        if !is_name(&name.value) {
            return Err(self.error(
                name.line,
                format!("{:?} cannot be an image's name: use a-z, 0-9, '.', '-' and '_', starting with a letter or digit", name.value),
            ));
        }
        let suite = raw.suite.map_or(
            Located {
                value: DEFAULT_SUITE.into(),
                line: 1,
            },
            |suite| self.located(suite),
        );
        if !is_name(&suite.value) {
            return Err(self.error(
                suite.line,
                format!("{:?} is no suite: give one such as \"trixie\"", suite.value),
            ));
        }
        let cmdline = raw.cmdline.map_or(
            Located {
                value: String::new(),
                line: 1,
            },
            |line| self.located(line),
        );
        if cmdline.value.chars().any(char::is_control) {
            return Err(self.error(
                cmdline.line,
                "cmdline has a control character or a line break: remove it",
            ));
        }
        let loaders = raw.loaders.unwrap_or(RawLoaders {
            shim: None,
            grub: None,
            mok: None,
            ipxe: None,
        });
        Ok(Recipe {
            file: self.file.to_owned(),
            sha256: sha256_hex(self.text.as_bytes()),
            name: name.value,
            suite: suite.value,
            cmdline: cmdline.value,
            max_initrd_bytes: raw.max_initrd_bytes.map(|bytes| {
                let line = self.line(bytes.span().start);
                Located {
                    value: bytes.into_inner(),
                    line,
                }
            }),
            kernel: self.kernel(raw.kernel)?,
            nic: self.all(raw.modules.nic),
            other: self.all(raw.modules.other),
            exclude: self.all(raw.modules.exclude),
            unpack_below: raw.modules.unpack_below.unwrap_or(DEFAULT_UNPACK_BELOW),
            allow_block_drivers: self.all(raw.modules.allow_block_drivers),
            busybox: self.busybox(raw.busybox)?,
            loaders: Loaders {
                shim: self.package(loaders.shim, "shim-signed")?,
                grub: self.package(loaders.grub, "grub-efi-amd64-signed")?,
                mok: self.package(loaders.mok, "shim-helpers-amd64-signed")?,
                ipxe: self.package(loaders.ipxe, "ipxe")?,
            },
            firmware: raw
                .firmware
                .map(|firmware| firmware.packages)
                .unwrap_or_default()
                .into_iter()
                .map(|name| self.package(Some(name), ""))
                .collect::<Result<_, _>>()?,
            compression: self.compression(raw.compression)?,
            files: raw
                .file
                .into_iter()
                .map(|file| self.extra_file(file))
                .collect::<Result<_, _>>()?,
            links: raw
                .link
                .into_iter()
                .map(|link| self.extra_link(link))
                .collect::<Result<_, _>>()?,
        })
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
    fn package(&self, name: Option<Spanned<String>>, default: &str) -> Result<Located<String>, RecipeError> {
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

    fn image_path(&self, raw: Spanned<String>) -> Result<Located<String>, RecipeError> {
        let path = self.located(raw);
        plan::check_path(&path.value).map_err(|error| {
            self.error(
                path.line,
                format!("{error}; give a path inside the image, such as /etc/motd"),
            )
        })?;
        Ok(path)
    }

    fn beside(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    fn all(&self, list: Vec<Spanned<String>>) -> Vec<Located<String>> {
        list.into_iter().map(|item| self.located(item)).collect()
    }

    fn located(&self, spanned: Spanned<String>) -> Located<String> {
        let line = self.line(spanned.span().start);
        Located {
            value: spanned.into_inner(),
            line,
        }
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }

    fn error(&self, line: usize, problem: impl Into<String>) -> RecipeError {
        RecipeError {
            file: self.file.display().to_string(),
            line,
            problem: problem.into(),
        }
    }

    pub(super) fn toml_error(&self, error: &toml::de::Error) -> RecipeError {
        let line = error.span().map_or(1, |span| self.line(span.start));
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

fn is_name(text: &str) -> bool {
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
