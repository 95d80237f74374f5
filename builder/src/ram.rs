//! How much RAM a boot takes at its peak, from what goes into the image: a table for people, and the two figures of the manifest. The
//! constants are measured on Debian 13's kernel (docs/decisions/0008-root-format.md says how); nothing here asks a running node.

use std::fmt;

use cid_initramfs::{Node, Plan};

/// What each part takes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// Text, data, page tables: memory that the kernel never counts as any (`MemTotal` does not have it).
    pub kernel: u64,
    /// What the kernel has allocated when the first peak comes.
    pub started: u64,
    /// Files of stage 1, unpacked.
    pub stage1: u64,
    /// The same when the drivers that this PC does not need are gone.
    pub stage1_kept: u64,
    /// The root, where there is one.
    pub root: Option<RootPart>,
}

/// What a root takes on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPart {
    /// `root.img`.
    pub image: u64,
    /// `root.tree`.
    pub tree: u64,
}

impl Prediction {
    /// Of an image with this file plan, and this root.
    pub fn of(plan: &Plan, root: Option<RootPart>) -> Self {
        let pages = |nodes: &mut dyn Iterator<Item = &Node>| -> u64 {
            nodes
                .filter(|node| matches!(node, Node::File { .. }))
                .map(|node| (node.content().len() as u64).next_multiple_of(PAGE))
                .sum()
        };
        let is_module = |path: &str| path.starts_with("/lib/modules/") || path.starts_with("/lib/firmware/");
        Prediction {
            kernel: KERNEL,
            started: STARTED,
            stage1: pages(&mut plan.nodes().map(|(_, node)| node)),
            stage1_kept: pages(
                &mut plan
                    .nodes()
                    .filter(|(path, _)| !is_module(path))
                    .map(|(_, node)| node),
            ),
            root,
        }
    }

    /// Used (`MemTotal` less `MemAvailable`) when PID 1 starts: every driver is still there.
    pub fn at_start(&self) -> u64 {
        self.started + self.stage1
    }

    /// In use when the root is mounted and before its services start, as the node counts it (`memory_peak_kib`): neither free nor
    /// given up without loss.
    pub fn with_root(&self) -> Option<u64> {
        let root = self.root?;
        Some(SETTLED + self.stage1_kept + PROGRAMS + root.image + root.tree)
    }

    /// The larger of the two, with room for services and for what the mounted file system reads.
    pub fn peak_used(&self) -> u64 {
        let with_root = self.with_root().map_or(0, |used| used + KEPT_FREE + WORKING_ROOM);
        self.at_start().max(with_root)
    }

    /// What a PC must have altogether. The kernel keeps 64 bytes for each page of 4 KiB, hence 64/63; and where it has
    /// [`HUGE_PAGES_FROM`] or more, a reserve for huge pages.
    pub fn needed(&self) -> u64 {
        let with = |reserve: u64| (self.kernel + self.peak_used() + reserve) / 63 * 64;
        if with(0) < HUGE_PAGES_FROM {
            with(0)
        } else {
            with(HUGE_PAGES)
        }
    }

    /// What must be free when the root's download begins; 0 without one.
    pub fn needed_for_root(&self) -> u64 {
        self.root.map_or(0, |root| root.image + root.tree + WORKING_ROOM)
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |what: &str, bytes: u64| writeln!(f, "{what:<13}{:>6.1} MB", bytes as f64 / 1e6);
        row("RAM, kernel", self.kernel + self.needed() / 64)?;
        match self.root {
            Some(root) if self.peak_used() > self.at_start() => {
                row("  its buffers", SETTLED + KEPT_FREE)?;
                row("  programs", self.stage1_kept + PROGRAMS)?;
                row("  root.img", root.image)?;
                row("  root.tree", root.tree)?;
                row("  room", WORKING_ROOM)?;
            }
            _ => {
                row("  its buffers", self.started)?;
                row("  stage 1", self.stage1)?;
            }
        }
        if self.needed() >= HUGE_PAGES_FROM {
            row("  huge pages", HUGE_PAGES)?;
        }
        write!(f, "  at its peak{:>6.1} MB", self.needed() as f64 / 1e6)
    }
}

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// RAM that a machine has, less `MemTotal`, less a 64th: 44 MiB with 512 MiB and with 1 GiB.
const KERNEL: u64 = 44 * MIB;
/// `MemTotal` less `MemAvailable` as PID 1 starts, less the files of stage 1.
const STARTED: u64 = 42 * MIB;
/// In use of the kernel's own half a minute later, by the node's count (docs/recipes.md).
const SETTLED: u64 = 20 * MIB;
/// What Linux keeps free for itself, with less than [`HUGE_PAGES_FROM`].
const KEPT_FREE: u64 = 10 * MIB;
/// What PID 1 and the agent allocate, chunks on their way among it.
const PROGRAMS: u64 = 6 * MIB;
/// What the mounted file system reads, services.
const WORKING_ROOM: u64 = 16 * MIB;

/// With so much RAM and more, Linux makes huge pages, and keeps a reserve for them that `MemAvailable` does not count.
const HUGE_PAGES_FROM: u64 = 565 * MIB;
/// That reserve, and what programs of stage 1 take more when their memory comes in huge pages.
const HUGE_PAGES: u64 = 100 * MIB;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_adds_itself_its_tree_and_room() {
        let mut plan = Plan::new();
        plan.add("/init", Node::program(vec![0; 1_000_000])).unwrap();
        plan.add("/lib/modules/6.12/kernel/big.ko", Node::file(vec![0; 20_000_000]))
            .unwrap();
        let bare = Prediction::of(&plan, None);
        assert_eq!(bare.needed_for_root(), 0);
        assert!(bare.peak_used() > 21_000_000 + STARTED);
        let root = RootPart {
            image: 200_000_000,
            tree: 30_000,
        };
        let with = Prediction::of(&plan, Some(root));
        assert_eq!(with.needed_for_root(), 200_030_000 + WORKING_ROOM);
        // By then the drivers are gone.
        assert!(with.peak_used() < 200_000_000 + bare.peak_used());
        let table = with.to_string();
        assert!(
            table.contains("root.img    200.0 MB") && table.contains("at its peak"),
            "{table}"
        );
    }
}
