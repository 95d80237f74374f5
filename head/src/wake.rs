//! Switching PCs on: the one interface for it, and who does it for which PC. Must not decide whom to wake or when; that is the
//! registry's work.
//!
//! | module | switches on by |
//! |---|---|
//! | [`magic`] | Wake-on-LAN |
//! | [`command`] | a program of the administrator's (Redfish, IPMI, AMT) |

pub mod command;
pub mod magic;

use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::Subnet;
use crate::interface::Interface;
use crate::mac::Mac;

pub use command::{CommandHook, WakeCommand};
pub use magic::WakeOnLan;

/// PCs that may be waiting to be switched on; a room many times over.
const MAX_WAITING: usize = 4_096;

/// A PC to be switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its boot NIC.
    pub mac: Mac,
    /// Its name, or its MAC while it has none.
    pub name: String,
    /// Its group; empty for none.
    pub group: String,
    /// The address it had last.
    pub address: Option<Ipv4Addr>,
    /// The subnets it had an address in, as it said when it joined last.
    pub subnets: Vec<Subnet>,
    /// What switches it on in place of Wake-on-LAN.
    pub command: Option<WakeCommand>,
}

/// Why a PC was not switched on; one line each. Nothing was changed but what the attempt itself did.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// No packet left, by any interface.
    #[error("no Wake-on-LAN packet left: {0}")]
    NothingSent(String),
    /// The program could not be started: the administrator's mistake.
    #[error(
        "its wake command {program} cannot be run: {source}; look at the file, and at what cidhead.service allows"
    )]
    Start {
        /// First word of the command.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program said that it failed.
    #[error("its wake command {how}{said}")]
    Failed {
        /// `ended with status 1`, `was killed by signal 9`.
        how: String,
        /// The last line on stderr behind a colon, or nothing.
        said: String,
    },
    /// The program took too long and was killed.
    #[error("its wake command was killed after {} s{said}", command::BOUND.as_secs())]
    TooLong {
        /// The last line on stderr behind a colon, or nothing.
        said: String,
    },
}

/// What comes of an attempt, some time: what there is to tell of it, `None` when nothing beyond the attempt itself.
pub type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Option<String>, WakeError>> + Send + 'a>>;

/// A way to switch PCs on.
pub trait PowerControl: Send + Sync {
    /// Tries once. Success means that the PC was told, not that it comes.
    fn wake<'a>(&'a self, target: &'a Target) -> Attempt<'a>;
}

/// All ways, and the bound on attempts that wait.
pub struct Power {
    lan: Box<dyn PowerControl>,
    hook: Box<dyn PowerControl>,
    waiting: Arc<Semaphore>,
}

impl Power {
    /// Wake-on-LAN leaves by these interfaces.
    pub fn new(interfaces: Vec<Interface>) -> Self {
        Self {
            lan: Box::new(WakeOnLan::new(interfaces)),
            hook: Box::new(CommandHook::default()),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// The way for this PC.
    pub fn control(&self, target: &Target) -> &dyn PowerControl {
        if target.command.is_some() {
            self.hook.as_ref()
        } else {
            self.lan.as_ref()
        }
    }

    /// A place among those that wait; `None` when there are too many.
    pub fn place(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.waiting).try_acquire_owned().ok()
    }
}
