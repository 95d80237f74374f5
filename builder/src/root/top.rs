//! The top layer of a root: overlays with their templates, users, services and mounts, laid over a base in memory.
//! Quick, so that a changed file of an overlay costs seconds. Runs nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use cid_protocol::manifest::Template;
use cid_protocol::root::MAX_ROOT_FILES;
use cid_protocol::services::{Process, SERVICES_PATH, SERVICES_VERSION, Services};
use tera::Tera;

use super::tree::{Entry, Kind, Tree};
use crate::recipe::root::{RootRecipe, User};
use crate::recipe::{Recipe, nearest};

/// Lays everything over `tree`, and notes what.
pub(super) fn lay(
    tree: &mut Tree,
    recipe: &Recipe,
    root: &RootRecipe,
    process: Option<&Process>,
    epoch: u64,
) -> anyhow::Result<()> {
    tree.record();
    let templates = Templates::new(recipe, root)?;
    for overlay in &root.overlays {
        let at = |error: anyhow::Error| {
            recipe.error(
                overlay.line,
                format!("overlay {}: {error:#}", overlay.value.display()),
            )
        };
        lay_overlay(tree, &overlay.value, &templates, epoch).map_err(at)?;
    }
    for user in &root.users {
        add_user(tree, user, epoch)
            .map_err(|error| recipe.error(user.name.line, format!("user {}: {error:#}", user.name.value)))?;
    }
    // Where the node mounts what every program expects; container images often come without.
    for folder in ["dev", "proc", "sys", "run"] {
        if !tree.is_folder(folder)? {
            put(tree, folder, Entry::new(Kind::Folder, 0o755), epoch)?;
        }
    }
    if !tree.is_folder("tmp")? {
        put(tree, "tmp", Entry::new(Kind::Folder, 0o1777), epoch)?;
    }
    for mount in &root.mounts {
        if !tree.is_folder(&mount.target)? {
            put(tree, &mount.target, Entry::new(Kind::Folder, 0o755), epoch)?;
        }
    }
    let health = &root.health.value;
    if !root.services.is_empty() || !root.mounts.is_empty() || !health.is_empty() || process.is_some() {
        let services = Services {
            version: SERVICES_VERSION,
            services: root.services.clone(),
            mounts: root.mounts.clone(),
            health: health.clone(),
            process: process.cloned(),
        };
        let mut text = serde_json::to_string_pretty(&services)?;
        text.push('\n');
        put(tree, SERVICES_PATH, Entry::text(text, 0o644), epoch)?;
    }
    check_services(tree, recipe, root)
}

fn put(tree: &mut Tree, name: &str, mut entry: Entry, epoch: u64) -> anyhow::Result<()> {
    // Times of a checkout say when somebody cloned, not what is inside.
    entry.mtime = epoch;
    tree.put(name, entry).map(drop)
}

/// A service whose program or user is not there would fail on every node, and so would a health command.
fn check_services(tree: &Tree, recipe: &Recipe, root: &RootRecipe) -> anyhow::Result<()> {
    for service in &root.services {
        let program = service.command.first().map_or("", String::as_str);
        let problem = if !tree.is_file(program)? {
            format!(
                "service {}: no {program} in the root; add the package or file it comes from",
                service.name
            )
        } else if !names(tree, "etc/passwd")?.contains_key(&service.user) && service.user != "root" {
            format!(
                "service {}: no user {:?} in the root; add it to [[root.users]]",
                service.name, service.user
            )
        } else {
            continue;
        };
        return Err(recipe.error(root.line, problem).into());
    }
    if let Some(program) = root.health.value.first()
        && !tree.is_file(program)?
    {
        let problem = format!("health: no {program} in the root; add the package or file it comes from");
        return Err(recipe.error(root.health.line, problem).into());
    }
    Ok(())
}

fn lay_overlay(tree: &mut Tree, folder: &Path, templates: &Templates, epoch: u64) -> anyhow::Result<()> {
    if !folder.is_dir() {
        bail!("no such folder; correct the path");
    }
    let mut overlay = Tree::default();
    overlay.read_folder(folder, true)?;
    for (name, entry) in overlay.entries() {
        let mut entry = entry.clone();
        let mut place = name.to_owned();
        if let Kind::File(content) = &entry.kind
            && let Some(plain) = name.strip_suffix(TEMPLATE)
        {
            let text = String::from_utf8(content.bytes()?).with_context(|| format!("{name}: no UTF-8"))?;
            let (target, text) = match plain.strip_suffix(NODE) {
                // Rendered by the head, for each node: here only its syntax is checked.
                Some(target) => {
                    templates.check(name, &text)?;
                    (format!("{NODE_TEMPLATES}/{target}"), text)
                }
                None => (plain.to_owned(), templates.render(name, &text)?),
            };
            place = target;
            entry = Entry::text(text, entry.mode);
        }
        if matches!(entry.kind, Kind::Folder) && tree.is_folder(&place)? {
            continue;
        }
        let (old, new) = (tree.get(&place), matches!(entry.kind, Kind::Folder));
        if old.is_some_and(|old| matches!(old.kind, Kind::Folder) != new) {
            bail!(
                "{name}: in the base one is a folder and the other a file; rename yours, or remove /{place} in a hook"
            );
        }
        put(tree, &place, entry, epoch)?;
    }
    Ok(())
}

/// The templates that overlays left for nodes. Not those of a base: only what this recipe checked is rendered by a head.
///
/// # Errors
/// They are more than a head sends to a node.
pub(super) fn node_templates(tree: &Tree) -> anyhow::Result<Vec<Template>> {
    let mut templates = Vec::new();
    let touched = tree.touched();
    for (name, entry) in touched.entries() {
        if let Some(path) = name
            .strip_prefix(NODE_TEMPLATES)
            .and_then(|rest| rest.strip_prefix('/'))
            && let Kind::File(content) = &entry.kind
        {
            templates.push(Template {
                path: path.to_owned(),
                mode: entry.mode & 0o777,
                text: String::from_utf8(content.bytes()?).with_context(|| format!("{name}: no UTF-8"))?,
            });
        }
    }
    let bytes: usize = templates
        .iter()
        .map(|template| template.path.len() + template.text.len())
        .sum();
    if bytes > MAX_ROOT_FILES {
        bail!(
            "its templates for nodes (*.node.tera) have {bytes} bytes, and a head sends {MAX_ROOT_FILES} to a node: put what is the same for all into plain files"
        );
    }
    Ok(templates)
}

/// Image values for templates.
struct Templates {
    values: tera::Context,
}

impl Templates {
    fn new(recipe: &Recipe, root: &RootRecipe) -> anyhow::Result<Self> {
        let mut values = tera::Context::new();
        values.insert("image", &recipe.name);
        values.insert("suite", &recipe.suite);
        values.insert("values", &root.values);
        Ok(Templates { values })
    }

    fn render(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let tera = Self::parse(name, text)?;
        tera.render(name, &self.values)
            .map_err(|error| one_line(name, &error))
    }

    fn check(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Self::parse(name, text).map(drop)
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Tera> {
        let mut tera = Tera::default();
        tera.autoescape_on(Vec::<&str>::new());
        tera.add_raw_template(name, text)
            .map_err(|error| one_line(name, &error))?;
        Ok(tera)
    }
}

fn one_line(name: &str, error: &tera::Error) -> anyhow::Error {
    let mut words: Vec<String> = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = cause {
        words.push(one.to_string().split_whitespace().collect::<Vec<_>>().join(" "));
        cause = one.source();
    }
    words.dedup();
    anyhow::anyhow!(
        "template {name}: {}; correct it, or name the value in [root.values]",
        words.join(": ")
    )
}

/// Name to line of `etc/passwd` or `etc/group`.
fn names(tree: &Tree, file: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let text = tree.read(file)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text
        .lines()
        .filter_map(|line| Some((line.split_once(':')?.0.to_owned(), line.to_owned())));
    Ok(lines.collect())
}

fn numbers(lines: &BTreeMap<String, String>) -> Vec<u32> {
    lines
        .values()
        .filter_map(|line| line.split(':').nth(2)?.parse().ok())
        .collect()
}

fn add_user(tree: &mut Tree, user: &User, epoch: u64) -> anyhow::Result<()> {
    let (users, groups) = (names(tree, "etc/passwd")?, names(tree, "etc/group")?);
    let name = &user.name.value;
    if users.contains_key(name) {
        bail!("the base has a user of this name; choose another");
    }
    for group in &user.groups {
        if !groups.contains_key(&group.value) {
            let near = nearest(&group.value, groups.keys().map(String::as_str)).unwrap_or("none");
            bail!("no group {:?} in the root; the nearest is {near:?}", group.value);
        }
    }
    let taken = [numbers(&users), numbers(&groups)].concat();
    let uid = match user.uid {
        Some(uid) if taken.contains(&uid) => bail!("uid {uid} is taken in the base; choose another"),
        Some(uid) => uid,
        None => (1000..60_000)
            .find(|uid| !taken.contains(uid))
            .context("no uid is free")?,
    };
    let (home, shell) = (&user.home, &user.shell);
    append(
        tree,
        "etc/passwd",
        &format!("{name}:x:{uid}:{uid}::{home}:{shell}\n"),
        0o644,
        epoch,
    )?;
    append(tree, "etc/group", &format!("{name}:x:{uid}:\n"), 0o644, epoch)?;
    // `*`: no password fits, keys do; `!` would lock keys out, too.
    let day = epoch / 86_400;
    append(
        tree,
        "etc/shadow",
        &format!("{name}:*:{day}:0:99999:7:::\n"),
        0o640,
        epoch,
    )?;
    for group in &user.groups {
        join_group(tree, &group.value, name, epoch)?;
    }
    let owned = |mut entry: Entry| {
        (entry.uid, entry.gid) = (uid.into(), uid.into());
        entry
    };
    put(tree, home, owned(Entry::new(Kind::Folder, 0o700)), epoch)?;
    if !user.ssh_keys.is_empty() {
        put(
            tree,
            &format!("{home}/.ssh"),
            owned(Entry::new(Kind::Folder, 0o700)),
            epoch,
        )?;
        let keys = format!("{}\n", user.ssh_keys.join("\n"));
        put(
            tree,
            &format!("{home}/.ssh/authorized_keys"),
            owned(Entry::text(keys, 0o600)),
            epoch,
        )?;
    }
    Ok(())
}

/// A file of the base with a line more; owner and mode stay.
fn append(tree: &mut Tree, file: &str, line: &str, mode: u32, epoch: u64) -> anyhow::Result<()> {
    let mut text = tree.read(file)?.unwrap_or_default();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    replace(tree, file, text, mode, epoch)
}

fn join_group(tree: &mut Tree, group: &str, user: &str, epoch: u64) -> anyhow::Result<()> {
    let text = tree.read("etc/group")?.unwrap_or_default();
    let mut lines = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let comma = if line.ends_with(':') { "" } else { "," };
        match line.split_once(':') {
            Some((name, _)) if name == group => lines.push(format!("{line}{comma}{user}\n")),
            _ => lines.push(format!("{line}\n")),
        }
    }
    replace(tree, "etc/group", lines.concat().into_bytes(), 0o644, epoch)
}

fn replace(tree: &mut Tree, file: &str, text: Vec<u8>, mode: u32, epoch: u64) -> anyhow::Result<()> {
    let fresh = Entry::text(text, mode);
    let entry = match tree.get(file) {
        Some(old) => Entry {
            kind: fresh.kind,
            ..old.clone()
        },
        None => fresh,
    };
    put(tree, file, entry, epoch)
}

/// Suffix of templates; before it may stand [`NODE`].
const TEMPLATE: &str = ".tera";
/// `NAME.node.tera` is rendered by the head for each node, with values of its group and its own.
const NODE: &str = ".node";
/// Where they are in the root for people to read, each below the path that it is rendered to.
const NODE_TEMPLATES: &str = "usr/lib/cid/templates";
