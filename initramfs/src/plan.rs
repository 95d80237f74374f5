//! The file plan: what an image holds, as a sorted value. Paths are checked here, once; never touches a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::digest::sha256_hex;

/// The entry written last. PID 1 treats its absence as a truncated initrd.
pub const COMPLETE: &str = "/etc/cid/complete";

/// One thing at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory with these permission bits.
    Directory {
        /// Permission bits, e.g. `0o755`.
        permissions: u32,
    },
    /// A regular file.
    File {
        /// Permission bits, e.g. `0o644`.
        permissions: u32,
        /// Its content.
        data: Arc<[u8]>,
    },
    /// A symbolic link.
    Symlink {
        /// What it points at, as in `readlink`.
        target: String,
    },
    /// A character device. Block devices cannot be said: no image of this project has one.
    CharacterDevice {
        /// Permission bits.
        permissions: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl Node {
    /// A file with permissions 0644.
    pub fn file(data: impl Into<Arc<[u8]>>) -> Self {
        Node::File {
            permissions: 0o644,
            data: data.into(),
        }
    }

    /// A file with permissions 0755.
    pub fn program(data: impl Into<Arc<[u8]>>) -> Self {
        Node::File {
            permissions: 0o755,
            data: data.into(),
        }
    }

    /// Type and permission bits as in `stat(2)`.
    pub fn mode(&self) -> u32 {
        match self {
            Node::Directory { permissions } => 0o040_000 | permissions,
            Node::File { permissions, .. } => 0o100_000 | permissions,
            Node::Symlink { .. } => 0o120_777,
            Node::CharacterDevice { permissions, .. } => 0o020_000 | permissions,
        }
    }

    /// What the archive stores as the content: the data of a file, the target of a link, else nothing.
    pub fn content(&self) -> &[u8] {
        match self {
            Node::File { data, .. } => data,
            Node::Symlink { target } => target.as_bytes(),
            Node::Directory { .. } | Node::CharacterDevice { .. } => &[],
        }
    }

    /// SHA-256 of [`Node::content`] for files and links, empty for the others: the manifest's convention.
    pub fn sha256(&self) -> String {
        match self {
            Node::File { .. } | Node::Symlink { .. } => sha256_hex(self.content()),
            Node::Directory { .. } | Node::CharacterDevice { .. } => String::new(),
        }
    }
}

/// Why something cannot be planned. The plan is unchanged afterwards. The caller's input is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Two things were planned at one path.
    #[error("{path}: planned twice")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// The path would leave the image's root or is otherwise no path.
    #[error("{path:?}: {problem}")]
    BadPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A parent of the path is planned as something other than a directory; a link there could lead out of the root.
    #[error("{path}: its parent {parent} is not a directory")]
    ParentNotDirectory {
        /// The path.
        path: String,
        /// The parent in the way.
        parent: String,
    },
    /// newc stores sizes in 32 bits.
    #[error("{path}: larger than 4 GiB, which a newc archive cannot hold")]
    TooLarge {
        /// The path.
        path: String,
    },
}

/// A checked, sorted set of nodes by absolute path. Parent directories appear by themselves (mode 0755).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    nodes: BTreeMap<String, Node>,
    supplied: BTreeSet<String>,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans `node` at `path` (absolute). A directory that is already there is left as it is.
    pub fn add(&mut self, path: &str, node: Node) -> Result<(), PlanError> {
        check_path(path)?;
        if node.content().len() > u32::MAX as usize {
            return Err(PlanError::TooLarge {
                path: path.to_owned(),
            });
        }
        if let Node::Symlink { target } = &node
            && (target.is_empty() || target.contains('\0'))
        {
            return Err(PlanError::BadPath {
                path: path.to_owned(),
                problem: "a link needs a target",
            });
        }
        match (self.nodes.get(path), &node) {
            (None, _) => {}
            (Some(Node::Directory { .. }), Node::Directory { .. }) => return Ok(()),
            (Some(_), _) => {
                return Err(PlanError::Duplicate {
                    path: path.to_owned(),
                });
            }
        }
        let parents = parents(path);
        for parent in &parents {
            match self.nodes.get(*parent) {
                None | Some(Node::Directory { .. }) => {}
                Some(_) => {
                    return Err(PlanError::ParentNotDirectory {
                        path: path.to_owned(),
                        parent: (*parent).to_owned(),
                    });
                }
            }
        }
        for parent in parents {
            self.nodes
                .entry(parent.to_owned())
                .or_insert(Node::Directory { permissions: 0o755 });
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    /// As [`Plan::add`], for a program or firmware out of a package: the same at every build until the package changes.
    pub fn add_supplied(&mut self, path: &str, node: Node) -> Result<(), PlanError> {
        self.add(path, node)?;
        self.supplied.insert(path.to_owned());
        Ok(())
    }

    /// Where in the archive the entry stands.
    pub fn group_of(&self, path: &str, node: &Node) -> Group {
        let packed = [".xz", ".zst", ".gz"].iter().any(|suffix| path.ends_with(suffix));
        match node {
            _ if path == COMPLETE => Group::Mark,
            Node::File { .. } if packed => Group::Packed,
            Node::File { .. } if path.starts_with("/lib/modules/") => Group::Module,
            Node::File { .. } if self.supplied.contains(path) => Group::Supplied,
            _ => Group::Plain,
        }
    }

    /// Writes the closing entry [`COMPLETE`]: the SHA-256 of the list of all other entries.
    pub fn seal(&mut self) -> Result<(), PlanError> {
        let mut list = String::new();
        for (path, node) in &self.nodes {
            list.push_str(&format!("{:o} {} {path}\n", node.mode(), node.sha256()));
        }
        let line = format!("{}\n", sha256_hex(list.as_bytes()));
        self.add(COMPLETE, Node::file(line.into_bytes()))
    }

    /// Path and node in archive order: directories and our programs (which resemble each other: the same libraries are in
    /// them), what packages bring, unpacked modules, what is compressed already (one run of the archive that the compressor need not work
    /// on), then [`COMPLETE`]. Within each, bytewise by path; every directory stands in the first group.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        let mut nodes: Vec<(&str, &Node)> = self
            .nodes
            .iter()
            .map(|(path, node)| (path.as_str(), node))
            .collect();
        // Stable: within a group the order stays that of the paths.
        nodes.sort_by_key(|(path, node)| self.group_of(path, node));
        nodes.into_iter()
    }

    /// The node at `path`.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Sum of the contents in bytes: about what the unpacked image takes of RAM.
    pub fn content_size(&self) -> u64 {
        self.nodes.values().map(|node| node.content().len() as u64).sum()
    }
}

/// An absolute path in normal form, without anything that the kernel's unpacker or a terminal could misread.
pub fn check_path(path: &str) -> Result<(), PlanError> {
    let bad = |problem| {
        Err(PlanError::BadPath {
            path: path.to_owned(),
            problem,
        })
    };
    let Some(relative) = path.strip_prefix('/') else {
        return bad("must start with /");
    };
    if relative.is_empty() {
        return bad("is the root itself");
    }
    if path.len() > PATH_LIMIT {
        return bad("is longer than a path may be");
    }
    if path.chars().any(char::is_control) {
        return bad("has a control character");
    }
    // The name of the trailer: the kernel would stop unpacking here and drop the rest without a word.
    if relative == "TRAILER!!!" {
        return bad("is the name that ends a newc archive");
    }
    for component in relative.split('/') {
        match component {
            ".." => return bad("leaves the root with '..'"),
            "" | "." => return bad("is not in normal form (empty or '.' component)"),
            _ if component.len() > 255 => return bad("has a component longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// Where in the archive an entry stands, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Directories, links, our programs, what a recipe adds.
    Plain,
    /// Programs and firmware out of packages.
    Supplied,
    /// Unpacked modules and their index.
    Module,
    /// What is compressed already.
    Packed,
    /// [`COMPLETE`].
    Mark,
}

/// Bytes of a path; `init/initramfs.c` skips names longer than PATH_MAX without a word.
const PATH_LIMIT: usize = 4000;

/// Every directory above `path`, outermost first, without the root.
fn parents(path: &str) -> Vec<&str> {
    path.match_indices('/')
        .skip(1)
        .map(|(at, _)| &path[..at])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(path: &str, part: &str) {
        let error = Plan::new().add(path, Node::file(*b"x")).expect_err(path);
        assert!(error.to_string().contains(part), "{path}: {error}");
    }

    #[test]
    fn paths_that_are_none() {
        check_refused("etc/passwd", "must start with /");
        check_refused("/", "root itself");
        check_refused("/a/../../etc", "leaves the root");
        check_refused("/..", "leaves the root");
        check_refused("/a//b", "normal form");
        check_refused("/a/./b", "normal form");
        check_refused("/a/", "normal form");
        check_refused("/a\nb", "control");
        check_refused("/a\0b", "control");
        check_refused("/TRAILER!!!", "ends a newc archive");
        check_refused(&format!("/{}", "x".repeat(256)), "longer than 255");
    }

    #[test]
    fn a_name_with_two_dots_inside_is_a_name() {
        Plan::new().add("/a..b/..c", Node::file(*b"x")).unwrap();
    }

    #[test]
    fn parents_come_first_and_the_mark_comes_last() {
        let mut plan = Plan::new();
        for path in ["/zz/file", "/init", "/a.xz", "/lib/modules/r/x.ko", "/d.xz/file"] {
            plan.add(path, Node::file(*b"1")).unwrap();
        }
        plan.seal().unwrap();
        let paths: Vec<&str> = plan.nodes().map(|(path, _)| path).collect();
        let first = "/d.xz /d.xz/file /etc /etc/cid /init /lib /lib/modules /lib/modules/r /zz /zz/file";
        assert_eq!(
            paths.join(" "),
            format!("{first} /lib/modules/r/x.ko /a.xz /etc/cid/complete")
        );
    }

    #[test]
    fn twice_is_refused_and_changes_nothing() {
        let mut plan = Plan::new();
        plan.add("/a", Node::file(*b"1")).unwrap();
        let before = plan.clone();
        assert_eq!(
            plan.add("/a", Node::file(*b"2")),
            Err(PlanError::Duplicate { path: "/a".into() })
        );
        assert!(matches!(
            plan.add("/a/b", Node::file(*b"2")),
            Err(PlanError::ParentNotDirectory { .. })
        ));
        assert_eq!(plan, before);
    }

    #[test]
    fn nothing_goes_through_a_link() {
        let mut plan = Plan::new();
        plan.add(
            "/out",
            Node::Symlink {
                target: "../..".into(),
            },
        )
        .unwrap();
        let error = plan
            .add("/out/etc/passwd", Node::file(*b"x"))
            .expect_err("through a link");
        assert_eq!(
            error.to_string(),
            "/out/etc/passwd: its parent /out is not a directory"
        );
    }

    #[test]
    fn the_mark_depends_on_every_entry() {
        let mark = |data: &[u8], permissions| {
            let mut plan = Plan::new();
            plan.add(
                "/f",
                Node::File {
                    permissions,
                    data: data.into(),
                },
            )
            .unwrap();
            plan.seal().unwrap();
            plan.node(COMPLETE).unwrap().content().to_vec()
        };
        assert_ne!(mark(b"1", 0o644), mark(b"2", 0o644));
        assert_ne!(mark(b"1", 0o644), mark(b"1", 0o600));
        assert_eq!(mark(b"1", 0o644), mark(b"1", 0o644));
    }
}
