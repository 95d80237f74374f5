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
mod hardware;
mod identity;
mod leaving;
mod links;
mod load;
mod measure;
mod member;
mod netlink;
#[cfg(test)]
mod room;
mod shell;
mod sockets;

use std::process::ExitCode;

use anyhow::Context;

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            // PID 1 shows it and starts the agent again.
            log!("cid-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<std::convert::Infallible> {
    let supervision = cid_sys::descriptors::take_inherited(cid_protocol::supervision::AGENT_FD, 1)
        .ok()
        .and_then(|mut taken| taken.pop())
        .context("no supervision socket: cid-init starts this program, people do not")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(shell::run(supervision))
}
