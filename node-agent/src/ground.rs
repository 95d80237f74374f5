//! What an agent stands on: this machine's own links, clock and files; or, in the lab, a place in a crowd of agents in one process,
//! each with its own address on one link that all of them use. Must be the only difference between the two.

use std::path::PathBuf;

use cid_discovery::load::LoadVector;
use cid_protocol::node::{Hardware, Leaving};

use crate::core::Link;
use crate::leaving::{self, Prepared};
use crate::load::Meter;
use crate::measure::Measurements;
use crate::member::keep;
use crate::{clock, hardware, links};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the agent runs.
pub(crate) enum Ground {
    /// On a PC: the machine is its own.
    Machine,
    /// Beside others in one process.
    #[cfg(feature = "crowd")]
    Crowd(Stand),
}

/// A place in the crowd. The address is on the link already, and stays: there is no DHCP client, and nothing is measured.
#[cfg(feature = "crowd")]
#[derive(Debug, Clone)]
pub struct Stand {
    /// The shared link, by number and name.
    pub link: (u32, String),
    /// Card's address of the machine that this agent is.
    pub mac: [u8; 6],
    /// Its address, with the prefix' length.
    pub address: (std::net::Ipv4Addr, u8),
    /// SMBIOS UUID.
    pub uuid: String,
    /// The boot it is.
    pub boot_id: String,
    /// What its loader script gave its kernel.
    pub cmdline: String,
    /// Its `/run/cid`.
    pub folder: PathBuf,
}

impl Ground {
    /// What the kernel was told.
    pub(crate) fn cmdline(&self) -> String {
        match self {
            Self::Machine => hardware::read("/proc/cmdline"),
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => stand.cmdline.clone(),
        }
    }

    /// For what an agent after this one must know.
    pub(crate) fn folder(&self) -> PathBuf {
        match self {
            Self::Machine => keep::FOLDER.into(),
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => stand.folder.clone(),
        }
    }

    /// Whether a root image may be mounted here: not in a crowd, whose machine is somebody's.
    pub(crate) fn takes_roots(&self) -> bool {
        match self {
            Self::Machine => true,
            #[cfg(feature = "crowd")]
            Self::Crowd(_) => false,
        }
    }

    /// Version of the messages about work; 0 where programs cannot be confined.
    pub(crate) fn work(&self) -> u32 {
        match self {
            Self::Machine if crate::jobs::is_possible() => cid_protocol::work::WORK_VERSION,
            Self::Machine => 0,
            #[cfg(feature = "crowd")]
            Self::Crowd(_) => 0,
        }
    }

    /// SMBIOS UUID.
    pub(crate) fn uuid(&self) -> String {
        match self {
            Self::Machine => hardware::uuid(),
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => stand.uuid.clone(),
        }
    }

    /// The kernel's name for this boot.
    pub(crate) fn boot_id(&self) -> String {
        match self {
            Self::Machine => hardware::read(BOOT_ID),
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => stand.boot_id.clone(),
        }
    }

    /// Wired links.
    pub(crate) fn wired(&self) -> Vec<Link> {
        match self {
            Self::Machine => links::wired(),
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => vec![Link {
                index: stand.link.0,
                name: stand.link.1.clone(),
                mac: stand.mac,
                carrier: true,
            }],
        }
    }

    /// The address of the only link, where this agent does not ask for one.
    pub(crate) fn fixed_address(&self) -> Option<(std::net::Ipv4Addr, u8)> {
        match self {
            Self::Machine => None,
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => Some(stand.address),
        }
    }

    /// Whether agents of this kernel hear the group over the same link, and must hear each other there.
    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self, Self::Machine)
    }

    /// What the head is told at a hello.
    pub(crate) fn hardware(
        &self,
        in_use: u32,
        addresses: &std::collections::BTreeMap<u32, String>,
    ) -> Hardware {
        match self {
            Self::Machine => hardware::report(in_use, addresses),
            #[cfg(feature = "crowd")]
            Self::Crowd(stand) => Hardware {
                uuid: stand.uuid.clone(),
                product: "CID crowd".to_owned(),
                cpus: 4,
                memory_kib: 8 << 20,
                memory_available_kib: 7 << 20,
                uptime_secs: 1.0,
                links: vec![cid_protocol::node::Link {
                    name: stand.link.1.clone(),
                    mac: stand.mac.map(|byte| format!("{byte:02x}")).join(":"),
                    carrier: true,
                    in_use: true,
                    ..cid_protocol::node::Link::default()
                }],
                ..Hardware::default()
            },
        }
    }

    /// The load for the membership. In a crowd that of an idle PC: all would tell each step of the one machine's load at once.
    pub(crate) fn load(&self, meter: &mut Meter, link: &str, cpu_speed: Option<f32>) -> LoadVector {
        match self {
            Self::Machine => meter.measure(link, cpu_speed),
            #[cfg(feature = "crowd")]
            Self::Crowd(_) => LoadVector {
                memory_available_16mib: 448,
                link_log2_mbit: 9,
                ..LoadVector::default()
            },
        }
    }

    /// Begins to measure, where that says something of the machine.
    pub(crate) fn measurements(&self) -> Measurements {
        match self {
            Self::Machine => Measurements::begin(),
            #[cfg(feature = "crowd")]
            Self::Crowd(_) => Measurements::never(),
        }
    }

    /// Steps the clock to the head's; whether it did. A crowd's clock is this machine's.
    pub(crate) fn set_clock(&self, unix_ms: u64) -> bool {
        matches!(self, Self::Machine) && clock::set(unix_ms)
    }

    /// What to get ready for the next start; blocks.
    pub(crate) fn preparation(
        &self,
        links: Vec<String>,
        leaving: Leaving,
    ) -> impl FnOnce() -> Prepared + Send + use<> {
        let is_machine = matches!(self, Self::Machine);
        move || match is_machine {
            true => leaving::prepare(links, leaving),
            false => Prepared {
                leaving,
                steps: Vec::new(),
            },
        }
    }
}
