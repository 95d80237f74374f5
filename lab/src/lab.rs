//! A room with the real head in it, and PCs: what a boot test starts from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use cid_protocol::api::{NodeRow, NodeState};

use crate::head::{Control, Head, HeadOptions};
use crate::machine::Machine;
use crate::pc::Pc;
use crate::room::Room;
use crate::run::run;
use crate::windows::Windows;

/// Deadline for a way from power-on to `up` here: four times what it takes under software emulation.
pub const UP_LIMIT: Duration = Duration::from_secs(240);
/// Deadline for a way from power-on or reset to the PC's own Windows.
pub const WINDOWS_LIMIT: Duration = Duration::from_secs(150);

/// A room, a head, and the means to build PCs.
#[derive(Debug)]
pub struct Lab {
    /// The head; public, so that tests can kill and restart it.
    pub head: Head,
    windows: Windows,
    pcs: AtomicU8,
    room: Arc<Room>,
}

impl Lab {
    /// A room with a head that knows every PC beforehand and boots the image `minimal`; frames are captured.
    ///
    /// # Errors
    /// When there is no image or program, or the room cannot be made. The error says how to get it.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, |options| options)
    }

    /// The same with other options.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn start_with(name: &str, change: impl FnOnce(HeadOptions) -> HeadOptions) -> Result<Self> {
        let options = change(HeadOptions::new(images_dir(), "minimal"));
        Self::start_in(Room::start(name)?, &options)
    }

    /// In a room that exists already.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn start_in(mut room: Room, options: &HeadOptions) -> Result<Self> {
        let manifest = options.images_dir.join(&options.image).join("manifest.json");
        anyhow::ensure!(
            manifest.exists(),
            "no image {}: `cidbuild image {} --out {}`",
            manifest.display(),
            options.image,
            options.images_dir.display()
        );
        room.capture()?;
        let windows = Windows::build(&room.dir().join("windows"))?;
        let room = Arc::new(room);
        let head = Head::start(&room, options)?;
        Ok(Self {
            head,
            windows,
            pcs: AtomicU8::new(0),
            room,
        })
    }

    /// The room.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Builds a PC; it is off.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn build(&self, machine: Machine) -> Result<Pc> {
        let number = self.pcs.fetch_add(1, Ordering::Relaxed) + 1;
        let mut pc = Pc::build(&self.room, &self.windows, machine, number)?;
        pc.control = Some(self.head.control().clone());
        Ok(pc)
    }

    /// Builds a PC and switches it on.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU does not start.
    pub fn power_on(&self, machine: Machine) -> Result<Pc> {
        let mut pc = self.build(machine)?;
        pc.power_on()?;
        Ok(pc)
    }

    /// Runs `cidctl`; returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        self.head.control().ask(arguments)
    }

    /// `cidctl release` of one PC.
    ///
    /// # Errors
    /// When the head does not know it or refuses.
    pub fn release(&self, pc: &Pc) -> Result<()> {
        let node = pc.node()?.context("the head does not know this PC")?;
        self.ctl(&["release", &node.name]).map(drop)
    }

    /// The end of a test of one PC: it is in its own Windows within `limit`, and its disk is what it was.
    ///
    /// # Errors
    /// When it is not.
    pub fn back_in_windows(self, mut pc: Pc, limit: Duration) -> Result<()> {
        pc.wait_windows(limit)?;
        pc.power_off()?;
        pc.assert_disk_untouched()?;
        drop(pc);
        self.succeeded();
        Ok(())
    }

    /// The captured frames that a filter of tcpdump lets through, one line for each.
    ///
    /// # Errors
    /// When tcpdump fails, or the room is not captured as a whole (see [`Room::capture`]).
    pub fn frames(&self, filter: &str) -> Result<String> {
        anyhow::ensure!(
            self.room.is_captured(),
            "without root the room is not captured as a whole"
        );
        let capture = self.room.dir().join("net.pcap");
        run(std::process::Command::new("tcpdump")
            .args(["-n", "-r"])
            .arg(capture)
            .arg(filter))
    }

    /// Whether the head's log says that this PC fetched a file of this name.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn fetched(&self, pc: &Pc, file: &str) -> Result<bool> {
        let log = std::fs::read_to_string(self.head.log())?;
        let (mac, words) = (pc.mac(), format!("fetches {file}"));
        Ok(log
            .lines()
            .any(|line| line.contains(&mac) && line.contains(&words)))
    }

    /// Ends the room; its folder is removed. Call it last: a lab that is dropped without it keeps its folder.
    pub fn succeeded(self) {
        self.room.succeeded();
    }
}

impl Pc {
    /// What the head knows of it, if anything.
    ///
    /// # Errors
    /// When the head is down, or the PC stands in a room without one.
    pub fn node(&self) -> Result<Option<NodeRow>> {
        self.control().and_then(|control| control.node(&self.mac()))
    }

    /// By how much its system clock is off the head's at the most, as the head measured it last.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub fn clock_error(&self) -> Result<Option<Duration>> {
        let off = |row: &NodeRow| Some(row.clock_ahead_us?.unsigned_abs() + row.clock_error_us?);
        Ok(self.node()?.as_ref().and_then(off).map(Duration::from_micros))
    }

    pub(crate) fn control(&self) -> Result<&Control> {
        self.control.as_ref().context("this room has no head")
    }

    /// Waits until `cidctl nodes` says that the PC, in the boot that began with its last power-on or reset, is `up`.
    /// A head that is down at a look is asked again.
    ///
    /// # Errors
    /// At the deadline, with the end of the serial log.
    pub fn wait_up(&mut self, limit: Duration) -> Result<NodeRow> {
        self.wait_state(NodeState::Up, limit)
    }

    /// Waits until the head says `up` or `home` of the boot that began with the last power-on or reset.
    ///
    /// # Errors
    /// At the deadline, with the end of the serial log.
    pub fn wait_settled_state(&mut self, limit: Duration) -> Result<NodeRow> {
        self.control()?;
        let mut found = None;
        self.wait("decision where it stays", limit, |this| {
            found = this.node().ok().flatten();
            Ok(found
                .as_ref()
                .is_some_and(|node| matches!(node.state, NodeState::Up | NodeState::Home)))
        })?;
        found.context("a node")
    }

    /// Waits for a state that began after the last power-on or reset.
    ///
    /// # Errors
    /// At the deadline, with the end of the serial log.
    pub fn wait_state(&mut self, state: NodeState, limit: Duration) -> Result<NodeRow> {
        self.control()?;
        let since = self
            .powered_on()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs();
        let mut found = None;
        self.wait(&format!("state {state:?}"), limit, |this| {
            let node = this.node().ok().flatten();
            found = node
                .filter(|node| node.state == state && (node.since_unix >= since || state == NodeState::Seen));
            Ok(found.is_some())
        })?;
        found.context("a node")
    }
}

/// Folder of built images: `$CID_IMAGES_DIR`, else `build/images` in the tree.
#[must_use]
pub fn images_dir() -> PathBuf {
    std::env::var_os("CID_IMAGES_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/images"),
        PathBuf::from,
    )
}
