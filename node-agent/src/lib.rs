//! The agent of a node: links, address, clock, join, membership. It must never be PID 1, which starts and watches
//! it, and it decides nothing about other machines.
//!
//! | module | holds |
//! |---|---|
//! | [`core`] | the node's life as a state machine: links -> address -> join -> up -> home |
//! | [`dhcp`] | a DHCP client per link (RFC 2131), as a state machine |
//! | [`shell`] | sockets, clocks, `/proc`; obeys the cores |
//! | [`measure`] | what the node measures before it joins; the head judges |
//! | [`member`] | this node among the members: datagrams, the history, what is kept for an agent after this one |
//! | [`identity`], [`door`] | its key and certificate; who is there, for an administrator who asks this node |
//! | [`leaving`], [`boot_next`] | what is got ready for the PC's next start: Wake-on-LAN, the firmware's own entry for Windows |
//! | [`root`] | the root image: fetched, checked, mounted, its services; its parts for other nodes |
//! | [`work`] | programs that run here for others: jobs, their first process, what they see |
//! | [`ground`] | what it stands on: this machine, or a place in the lab's crowd |
//! | [`links`], [`netlink`], [`hardware`], [`load`], [`clock`], [`sockets`], [`frames`] | what the shell asks the kernel, and how messages travel |

/// One line on stderr, which PID 1 gave us: the console, without blocking. `eprintln!` would panic when it is full.
macro_rules! log {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = std::io::stderr().write_all(format!("{}\n", format_args!($($text)*)).as_bytes());
    }};
}

mod boot_next;
mod clock;
mod core;
mod dhcp;
mod door;
mod frames;
mod ground;
mod hardware;
mod identity;
mod jobs;
mod leaving;
mod links;
mod load;
mod measure;
mod member;
mod netlink;
#[cfg(test)]
mod room;
mod root;
mod shell;
mod sockets;

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use ground::Ground;
#[cfg(feature = "crowd")]
pub use ground::Stand;
pub use jobs::INIT_NAME as JOB_NAME;
pub use jobs::init::run as run_job;

/// Runs this machine's agent until the process is ended.
///
/// # Errors
/// What ends it; PID 1 starts it again.
pub async fn run(supervision: OwnedFd) -> anyhow::Result<Infallible> {
    shell::run(supervision, Ground::Machine).await
}

/// Runs one of many agents of this process, each at its own address, on one link that they share. For the lab; no image has it.
///
/// # Errors
/// What ends it, as [`run`]'s.
#[cfg(feature = "crowd")]
pub async fn run_in_crowd(supervision: OwnedFd, stand: Stand) -> anyhow::Result<Infallible> {
    shell::run(supervision, Ground::Crowd(stand)).await
}
