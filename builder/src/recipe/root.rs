//! The `[root]` section of a recipe: what stage 2 is made from. Text to validated type; looks at no host state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cid_protocol::services::{Mount, Restart, Service};
use serde::Deserialize;
use toml::Spanned;

use super::parse::Context;
use super::{Located, RecipeError, nearest};
use crate::stage2::FORMAT;

/// A validated `[root]` section.
#[derive(Debug, Clone, PartialEq)]
pub struct RootRecipe {
    /// Line of the section.
    pub line: usize,
    /// What it starts from.
    pub base: Located<Base>,
    /// Packages of a Debian base, dependencies not counted.
    pub packages: Vec<Located<String>>,
    /// Folders that are laid over the base, in order.
    pub overlays: Vec<Located<PathBuf>>,
    /// What templates in overlays may name as `values.NAME`.
    pub values: toml::Table,
    /// Added users.
    pub users: Vec<User>,
    /// Started by the agent.
    pub services: Vec<Service>,
    /// Mounted by the agent.
    pub mounts: Vec<Mount>,
    /// Says on the node whether the root works there; none when empty.
    pub health: Located<Vec<String>>,
    /// Run in the tree after the packages, before the overlays.
    pub hooks: Vec<Hook>,
    /// Patterns of paths that are left out; `*` stands for anything.
    pub drop: Vec<Located<String>>,
    /// Lock file of a Debian base.
    pub lock: PathBuf,
}

/// What a root starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Packages of a Debian suite.
    Debian(String),
    /// An OCI layout (folder or tar) or a `docker save` archive; the tag when it is written behind the path.
    Oci(PathBuf),
    /// A folder.
    Folder(PathBuf),
    /// A tar file, compressed or not.
    Tar(PathBuf),
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Base::Debian(suite) => write!(f, "debian:{suite}"),
            Base::Oci(path) => write!(f, "oci:{}", path.display()),
            Base::Folder(path) => write!(f, "dir:{}", path.display()),
            Base::Tar(path) => write!(f, "tar:{}", path.display()),
        }
    }
}

/// A user that the root has beside those of its packages. Nobody has a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, and where it stands.
    pub name: Located<String>,
    /// Number; the first free one from 1000 when absent. The group of the user's name has the same.
    pub uid: Option<u32>,
    /// Further groups; they must exist.
    pub groups: Vec<Located<String>>,
    /// Login shell.
    pub shell: String,
    /// Home folder.
    pub home: String,
    /// Lines of `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

/// A script that runs in the tree, as root, without a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Line of the entry.
    pub line: usize,
    /// The text, run by `/bin/sh -e`.
    pub script: HookScript,
    /// Files and folders that it finds below `/run/cid-inputs/`, by their last names.
    pub inputs: Vec<Located<PathBuf>>,
}

/// Where a hook's text stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookScript {
    /// In the recipe.
    Text(String),
    /// In a file beside it.
    File(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoot {
    base: Option<Spanned<String>>,
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    format: Option<Spanned<String>>,
    #[serde(default)]
    overlays: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    values: toml::Table,
    #[serde(default)]
    users: Vec<RawUser>,
    #[serde(default)]
    services: Vec<RawService>,
    #[serde(default)]
    mounts: Vec<RawMount>,
    health: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    hooks: Vec<Spanned<RawHook>>,
    drop: Option<Vec<Spanned<String>>>,
    lock: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUser {
    name: Spanned<String>,
    uid: Option<Spanned<u32>>,
    #[serde(default)]
    groups: Vec<Spanned<String>>,
    shell: Option<Spanned<String>>,
    home: Option<Spanned<String>>,
    #[serde(default)]
    ssh_keys: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: Spanned<String>,
    command: Spanned<Vec<String>>,
    user: Option<Spanned<String>>,
    restart: Option<Spanned<String>>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMount {
    source: Spanned<String>,
    target: Spanned<String>,
    kind: Spanned<String>,
    #[serde(default)]
    options: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHook {
    run: Option<String>,
    script: Option<PathBuf>,
    #[serde(default)]
    inputs: Vec<Spanned<PathBuf>>,
}

/// What a Debian base leaves out unless the recipe has a `drop` of its own. Copyright files stay: `packages.json` names
/// them.
pub const DEFAULT_DROP: &[&str] = &[
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/doc-base/*",
    "/usr/share/lintian/*",
    "/usr/share/bug/*",
];

const INSTALLED: &str = "/usr/share/cid";
/// Lock files of installed recipes.
const LOCKS: &str = "/var/lib/cid/locks";

/// Kinds of file systems that a node may mount: none of them is on a local disk.
const MOUNT_KINDS: &[&str] = &["nfs", "nfs4", "tmpfs", "9p", "virtiofs", "cifs"];

impl Context<'_> {
    /// `parent` is the section of the included recipe: lists go on from its lists, other keys replace.
    pub(super) fn root(
        &self,
        raw: Spanned<RawRoot>,
        parent: Option<RootRecipe>,
    ) -> Result<RootRecipe, RecipeError> {
        let line = self.line(raw.span().start);
        let raw = raw.into_inner();
        let lock = self.lock(&raw, parent.as_ref());
        let mut root = match (raw.base, parent) {
            (Some(base), Some(parent)) => RootRecipe {
                base: self.base(base)?,
                ..parent
            },
            (None, Some(parent)) => parent,
            (Some(base), None) => self.first(self.base(base)?, line, raw.drop.is_none()),
            (None, None) => {
                let problem =
                    "[root] has no base: say base = \"debian:trixie\", or include a recipe that has one";
                return Err(self.error(line, problem));
            }
        };
        root.line = line;
        root.lock = lock;
        let packages = raw.packages.into_iter().map(|name| self.package(Some(name), ""));
        root.packages.extend(packages.collect::<Result<Vec<_>, _>>()?);
        if let Some(first) = root.packages.first()
            && !matches!(root.base.value, Base::Debian(_))
        {
            let problem = "packages want base = \"debian:SUITE\": install them in a hook, or remove the key";
            return Err(self.error(first.line, problem));
        }
        let drop = self.all(raw.drop.unwrap_or_default());
        if let Some(bad) = drop.iter().find(|pattern| !pattern.value.starts_with('/')) {
            let problem = format!(
                "drop {:?}: give a pattern of absolute paths, such as \"/usr/share/man/*\"",
                bad.value
            );
            return Err(self.error(bad.line, problem));
        }
        root.drop.extend(drop);
        if let Some(format) = raw.format {
            self.format(format)?;
        }
        root.overlays
            .extend(raw.overlays.into_iter().map(|path| self.located_path(path)));
        root.values.extend(raw.values);
        for user in raw.users {
            root.users.push(self.user(user)?);
        }
        self.services(raw.services, &mut root.services)?;
        for mount in raw.mounts {
            root.mounts.push(self.mount(mount)?);
        }
        if let Some(health) = raw.health {
            root.health = self.command(health, "health")?;
        }
        for hook in raw.hooks {
            root.hooks.push(self.hook(hook)?);
        }
        Ok(root)
    }

    /// A section that says no more than its base.
    fn first(&self, base: Located<Base>, line: usize, default_drop: bool) -> RootRecipe {
        let debian = matches!(base.value, Base::Debian(_));
        let drop = DEFAULT_DROP.iter().filter(|_| debian && default_drop);
        RootRecipe {
            line,
            base,
            packages: Vec::new(),
            overlays: Vec::new(),
            values: toml::Table::new(),
            users: Vec::new(),
            services: Vec::new(),
            mounts: Vec::new(),
            health: Located {
                value: Vec::new(),
                line,
            },
            hooks: Vec::new(),
            drop: drop
                .map(|pattern| Located {
                    value: (*pattern).to_owned(),
                    line,
                })
                .collect(),
            lock: PathBuf::new(),
        }
    }

    /// Where the lock is. Who includes a recipe and asks for no package of their own has its lock, and so its bottom layer.
    fn lock(&self, raw: &RawRoot, parent: Option<&RootRecipe>) -> PathBuf {
        match (&raw.lock, parent) {
            (Some(lock), _) => self.beside(lock),
            (None, Some(parent)) if raw.base.is_none() && raw.packages.is_empty() => parent.lock.clone(),
            // Installed recipes are the package's, what they came to here is this machine's.
            _ if self.file.starts_with(INSTALLED) => {
                Path::new(LOCKS).join(self.file.with_extension("lock").file_name().unwrap_or_default())
            }
            _ => self.file.with_extension("lock"),
        }
    }

    fn base(&self, raw: Spanned<String>) -> Result<Located<Base>, RecipeError> {
        let text = self.located(raw);
        let value = match text.value.split_once(':') {
            Some(("debian", suite)) if super::parse::is_name(suite) => Base::Debian(suite.to_owned()),
            Some(("oci", path)) if !path.is_empty() => Base::Oci(self.beside(Path::new(path))),
            Some(("dir", path)) if !path.is_empty() => Base::Folder(self.beside(Path::new(path))),
            Some(("tar", path)) if !path.is_empty() => Base::Tar(self.beside(Path::new(path))),
            _ => {
                let problem = format!(
                    "base {:?}: give \"debian:SUITE\", \"oci:PATH\", \"dir:PATH\" or \"tar:PATH\"",
                    text.value
                );
                return Err(self.error(text.line, problem));
            }
        };
        Ok(Located {
            value,
            line: text.line,
        })
    }

    /// There is one file system of roots; a recipe may name it.
    fn format(&self, raw: Spanned<String>) -> Result<(), RecipeError> {
        let text = self.located(raw);
        if text.value == FORMAT {
            return Ok(());
        }
        let problem = format!(
            "format {:?}: root images are {FORMAT:?} (docs/decisions/0008-root-format.md): remove this line",
            text.value
        );
        Err(self.error(text.line, problem))
    }

    fn user(&self, raw: RawUser) -> Result<User, RecipeError> {
        let name = self.account(raw.name)?;
        let absolute = |value: Option<Spanned<String>>, default: String| match value {
            None => Ok(default),
            Some(value) => {
                let value = self.located(value);
                if value.value.starts_with('/') && !value.value.contains([':', '\n']) {
                    return Ok(value.value);
                }
                Err(self.error(value.line, format!("{:?}: give an absolute path", value.value)))
            }
        };
        let uid = match raw.uid {
            Some(uid) if !(1..=60_000).contains(uid.get_ref()) => {
                let line = self.line(uid.span().start);
                return Err(self.error(line, "uid: give one from 1 to 60000 (0 is root)"));
            }
            uid => uid.map(Spanned::into_inner),
        };
        let mut ssh_keys = Vec::new();
        for key in raw.ssh_keys {
            let key = self.located(key);
            let mut words = key.value.split_whitespace();
            let kind = words.next().unwrap_or_default();
            let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
            if !known || words.next().is_none() || key.value.chars().any(char::is_control) {
                let problem = "ssh_keys: give public keys as they stand in id_ed25519.pub, such as \"ssh-ed25519 AAAA…\"";
                return Err(self.error(key.line, problem));
            }
            ssh_keys.push(key.value);
        }
        Ok(User {
            uid,
            groups: raw
                .groups
                .into_iter()
                .map(|group| self.account(group))
                .collect::<Result<_, _>>()?,
            shell: absolute(raw.shell, "/bin/bash".to_owned())?,
            home: absolute(raw.home, format!("/home/{}", name.value))?,
            ssh_keys,
            name,
        })
    }

    /// A name of a user, a group or a service.
    fn account(&self, raw: Spanned<String>) -> Result<Located<String>, RecipeError> {
        let name = self.located(raw);
        let first = name
            .value
            .starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let all = name
            .value
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
        if first && all && name.value.len() <= 32 {
            return Ok(name);
        }
        let problem = format!(
            "name {:?}: use a-z, 0-9, '_' and '-', starting with a letter",
            name.value
        );
        Err(self.error(name.line, problem))
    }

    fn services(&self, raw: Vec<RawService>, services: &mut Vec<Service>) -> Result<(), RecipeError> {
        for raw in raw {
            let name = self.account(raw.name)?;
            if services.iter().any(|service| service.name == name.value) {
                return Err(self.error(
                    name.line,
                    format!("service {:?} is there twice: rename one", name.value),
                ));
            }
            let command = self.command(raw.command, "command")?.value;
            let user = match raw.user {
                Some(user) => self.account(user)?.value,
                None => "root".to_owned(),
            };
            services.push(Service {
                name: name.value,
                command,
                user,
                restart: self.restart(raw.restart)?,
                environment: raw.environment,
            });
        }
        Ok(())
    }

    fn command(&self, raw: Spanned<Vec<String>>, key: &str) -> Result<Located<Vec<String>>, RecipeError> {
        let line = self.line(raw.span().start);
        let value = raw.into_inner();
        if !value.first().is_some_and(|program| program.starts_with('/')) {
            let problem = format!(
                "{key}: give a list that starts with a program's absolute path, such as [\"/usr/sbin/sshd\", \"-D\"]"
            );
            return Err(self.error(line, problem));
        }
        Ok(Located { value, line })
    }

    fn restart(&self, raw: Option<Spanned<String>>) -> Result<Restart, RecipeError> {
        let Some(raw) = raw else {
            return Ok(Restart::Always);
        };
        let text = self.located(raw);
        match text.value.as_str() {
            "always" => Ok(Restart::Always),
            "on-failure" => Ok(Restart::OnFailure),
            "never" => Ok(Restart::Never),
            other => {
                let problem = format!("restart {other:?}: use \"always\", \"on-failure\" or \"never\"");
                Err(self.error(text.line, problem))
            }
        }
    }

    fn mount(&self, raw: RawMount) -> Result<Mount, RecipeError> {
        let target = self.image_path(raw.target)?;
        let kind = self.located(raw.kind);
        if !MOUNT_KINDS.contains(&kind.value.as_str()) {
            let near = nearest(&kind.value, MOUNT_KINDS.iter().copied()).unwrap_or("nfs4");
            let problem = format!(
                "kind {:?}: a node mounts {} and nothing that is on a disk; the nearest is {near:?}",
                kind.value,
                MOUNT_KINDS.join(", ")
            );
            return Err(self.error(kind.line, problem));
        }
        Ok(Mount {
            source: raw.source.into_inner(),
            target: target.value,
            kind: kind.value,
            options: raw.options,
        })
    }

    fn hook(&self, raw: Spanned<RawHook>) -> Result<Hook, RecipeError> {
        let line = self.line(raw.span().start);
        let raw = raw.into_inner();
        let script = match (raw.run, raw.script) {
            (Some(text), None) => HookScript::Text(text),
            (None, Some(file)) => HookScript::File(self.beside(&file)),
            _ => {
                return Err(self.error(line, "a hook needs either run = \"TEXT\" or script = \"FILE\""));
            }
        };
        let inputs = raw.inputs.into_iter().map(|path| self.located_path(path));
        Ok(Hook {
            line,
            script,
            inputs: inputs.collect(),
        })
    }

    fn located_path(&self, raw: Spanned<PathBuf>) -> Located<PathBuf> {
        let line = self.line(raw.span().start);
        Located {
            value: self.beside(raw.get_ref()),
            line,
        }
    }
}

/// What the section came to: printed before a long build.
impl std::fmt::Display for RootRecipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |list: Vec<&str>| {
            if list.is_empty() {
                "none".to_owned()
            } else {
                list.join(", ")
            }
        };
        writeln!(f, "root         {}", self.base.value)?;
        if let Base::Debian(_) = self.base.value {
            writeln!(
                f,
                "packages     {}",
                names(self.packages.iter().map(|name| name.value.as_str()).collect())
            )?;
            writeln!(f, "lock         {}", self.lock.display())?;
        }
        for overlay in &self.overlays {
            writeln!(f, "overlay      {}", overlay.value.display())?;
        }
        for hook in &self.hooks {
            match &hook.script {
                HookScript::Text(text) => writeln!(
                    f,
                    "hook         {}",
                    text.trim().lines().next().unwrap_or_default()
                )?,
                HookScript::File(file) => writeln!(f, "hook         {}", file.display())?,
            }
        }
        writeln!(
            f,
            "users        {}",
            names(self.users.iter().map(|user| user.name.value.as_str()).collect())
        )?;
        writeln!(
            f,
            "services     {}",
            names(
                self.services
                    .iter()
                    .map(|service| service.name.as_str())
                    .collect()
            )
        )?;
        for mount in &self.mounts {
            writeln!(
                f,
                "mount        {} on {} ({})",
                mount.source, mount.target, mount.kind
            )?;
        }
        if !self.health.value.is_empty() {
            writeln!(f, "health       {}", self.health.value.join(" "))?;
        }
        write!(
            f,
            "left out     {}",
            names(self.drop.iter().map(|pattern| pattern.value.as_str()).collect())
        )
    }
}
