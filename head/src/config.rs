//! `head.toml`: text in, a validated configuration out, or one line that names file, line and remedy.
//! Must not look at the machine: what depends on the interface is filled in by [`Config::resolve`] from facts given.

mod check;
mod raw;
mod render;
mod requires;
mod schema;
mod snippet;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::mac::Mac;

use jiff::tz::TimeZone;

use cid_protocol::node::{Ending, WayHome};

use crate::hours::Hours;
use crate::judge::Requirements;
use crate::wake::WakeCommand;

pub use check::{parse_duration, parse_pattern};
pub use raw::Value;
pub use render::{STARTER, render};
pub use schema::{manual_page, schema};
pub use snippet::{Product, snippet};

/// Where `cidhead` looks when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/cid/head.toml";

/// A mistake in `head.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.what),
            None => write!(f, "{}: {}", self.file.display(), self.what),
        }
    }
}

/// What happens to a machine that nobody adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// It is listed as `seen` and sent to its own disk.
    Wait,
    /// It boots in this group without being asked.
    Boot {
        /// A group of this file.
        group: String,
    },
}

/// What one machine's pattern in `match` looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// MAC glob, lower-case with colons.
    Mac(String),
    /// SMBIOS UUID, lower-case.
    Uuid(String),
    /// IPv4 address.
    Address(Ipv4Addr),
    /// Name glob.
    Name(String),
}

/// A group of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Folder name under `images_dir`.
    pub image: String,
    /// Words behind the image's and the head's on the kernel command line.
    pub kernel_args: String,
    /// How long a node endures without its head.
    pub bail_out: Duration,
    /// How long draining may take.
    pub patience: Duration,
    /// When it may compute.
    pub hours: Hours,
    /// Whether its machines are woken when the hours begin.
    pub wake: bool,
    /// What wakes one of its machines in place of Wake-on-LAN.
    pub wake_command: Option<WakeCommand>,
    /// What a node does when it is sent home and nobody stands before it.
    pub at_close: Ending,
    /// How a node that restarts gets to the PC's own system.
    pub way_home: WayHome,
    /// Machines that may boot in this group without being adopted one by one.
    pub matches: Vec<Pattern>,
    /// What a node must measure of itself to join.
    pub requires: Requirements,
    /// For templates of its image.
    pub values: BTreeMap<String, Value>,
}

/// What this head does about DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DhcpMode {
    /// It gives out the addresses, and boot answers with them. Alone on its wire.
    #[default]
    Full,
    /// It gives boot answers beside somebody else's DHCP server, on one or several interfaces.
    Proxy,
    /// It has no DHCP socket: somebody else's DHCP server names it as boot server.
    Off,
}

impl DhcpMode {
    /// Its word in `head.toml`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Proxy => "proxy",
            Self::Off => "off",
        }
    }
}

/// One machine, by its MAC address: what the administrator knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Name of a row of `cid_bootserver::quirks`.
    pub quirk: Option<String>,
    /// For templates of its image, before those of its group.
    pub values: BTreeMap<String, Value>,
}

/// The `[dhcp]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp {
    /// Ours, beside another, or none.
    pub mode: DhcpMode,
    /// First and last address given out; `None` until resolved means the upper half of the subnet.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Lease time.
    pub lease: Duration,
    /// Default gateway for clients (option 3).
    pub router: Option<Ipv4Addr>,
    /// Name servers for clients (option 6).
    pub dns: Vec<Ipv4Addr>,
    /// Domain for clients (option 15).
    pub domain: Option<String>,
}

/// The whole of `head.toml`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// File it came from.
    pub file: PathBuf,
    /// Who runs this cluster, for the person at the PC; empty when not said.
    pub site: String,
    /// Interface that faces the lab; the first one of several.
    pub interface: String,
    /// All of them; several in proxy and off mode only.
    pub interfaces: Vec<String>,
    /// Where `cid.db` lives.
    pub state_dir: PathBuf,
    /// Where the images lie.
    pub images_dir: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// What to do with strangers.
    pub unknown: Unknown,
    /// DHCP.
    pub dhcp: Dhcp,
    /// Time zone of the hours; absent is the head's own.
    pub time_zone: Option<String>,
    /// How long a boot token is good.
    pub token_valid: Duration,
    /// Groups by name.
    pub groups: BTreeMap<String, Group>,
    /// What is special about single machines.
    pub machines: BTreeMap<Mac, Machine>,
}

/// What the interface adds: facts of the machine, read by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The head's own address.
    pub address: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
}

impl Subnet {
    /// The subnet mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            u32::MAX
                .checked_shl(32 - u32::from(self.prefix.min(32)))
                .unwrap_or(0),
        )
    }

    /// The network's own address.
    pub fn network(&self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// The directed broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.network() | !self.mask()
    }

    /// Whether `address` can be a host here.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network() && address != self.network() && address != self.broadcast()
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong: one line with the remedy.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let remedy = if error.kind() == std::io::ErrorKind::NotFound {
                "; write one with `cidhead init`, or name another with --config"
            } else {
                ""
            };
            ConfigError {
                file: file.to_owned(),
                line: None,
                what: format!("{error}{remedy}"),
            }
        })?;
        Self::parse(file, &text)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let at = |span: Option<Range<usize>>, what: String| ConfigError {
            file: file.to_owned(),
            line: span.map(|span| {
                text.as_bytes()
                    .iter()
                    .take(span.start)
                    .filter(|byte| **byte == b'\n')
                    .count()
                    + 1
            }),
            what,
        };
        let raw: raw::Head =
            toml::from_str(text).map_err(|error| at(error.span(), explain_toml(error.message())))?;
        check::validate(file, raw).map_err(|check::Fault { span, what }| at(span, what))
    }

    /// Fills what the interface decides: the DHCP range.
    ///
    /// # Errors
    /// The range does not fit the interface's subnet, or no range can be made.
    pub fn resolve(mut self, subnet: &Subnet) -> Result<Self, ConfigError> {
        let wrong = |what: String| ConfigError {
            file: self.file.clone(),
            line: None,
            what,
        };
        if self.dhcp.mode != DhcpMode::Full {
            return Ok(self);
        }
        let (low, high) = match self.dhcp.range {
            Some(range) => range,
            None => default_range(subnet).ok_or_else(|| {
                wrong(format!(
                    "the subnet {}/{} of {} is too small for a DHCP range; give the interface a /28 or larger, or set `range` in [dhcp]",
                    subnet.network(), subnet.prefix, self.interface
                ))
            })?,
        };
        if !subnet.holds(low) || !subnet.holds(high) {
            return Err(wrong(format!(
                "`range` {low}-{high} is not inside {}/{}, the subnet of {}; change `range` in [dhcp] or the interface's address",
                subnet.network(),
                subnet.prefix,
                self.interface
            )));
        }
        self.dhcp.range = Some((low, high));
        Ok(self)
    }

    /// The zone that hours are read in: the named one, else the head's own.
    pub fn zone(&self) -> TimeZone {
        // The name was checked when the file was read.
        let named = self
            .time_zone
            .as_deref()
            .and_then(|name| TimeZone::get(name).ok());
        named.unwrap_or_else(TimeZone::system)
    }

    /// Looks up a group.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }
}

/// The upper half of the subnet without the broadcast address and whatever lies at or below the head in that half.
fn default_range(subnet: &Subnet) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if subnet.prefix < 8 || subnet.prefix > 28 {
        return None;
    }
    let (network, broadcast) = (subnet.network().to_bits(), subnet.broadcast().to_bits());
    let middle = network + (broadcast - network).div_ceil(2);
    let own = subnet.address.to_bits();
    let (low, high) = if own < middle {
        (middle, broadcast - 1)
    } else if broadcast - own > own - middle {
        (own + 1, broadcast - 1)
    } else {
        (middle, own - 1)
    };
    Some((Ipv4Addr::from_bits(low), Ipv4Addr::from_bits(high)))
}

/// serde's message, with the nearest known key in place of its list of all keys.
fn explain_toml(message: &str) -> String {
    let message = message.lines().next().unwrap_or(message);
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut quoted = rest.split('`').skip(1).step_by(2);
        if let Some(unknown) = quoted.next() {
            let known: Vec<&str> = quoted.collect();
            return match nearest(unknown, known) {
                Some(key) => format!("unknown key `{unknown}`; the nearest known key here is `{key}`"),
                None => format!("unknown key `{unknown}`"),
            };
        }
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        return format!("the key {rest} is missing; it is the one key without a default");
    }
    message.to_owned()
}

/// The word that was meant, most likely.
pub(crate) fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().min_by_key(|word| distance(unknown, word))
}

/// Levenshtein's distance in characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests;
