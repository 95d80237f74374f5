//! PID 1 of a node: mounts, drivers, supervision of the agent, watchdog, keyboard, one reaper, one exit.
//! It must never use the network, threads, async, or a local disk; it never exits and never panics.
//!
//! | going home because | how | bound until the reset |
//! |---|---|---|
//! | any key, power button, Ctrl-Alt-Del | [`keys`], signals -> drain | 10 s, `patience` if that is less |
//! | the agent says so (released, head unreachable) | [`supervise`] | at once |
//! | agent dead or silent | [`supervise`]: 3 restarts | 2 min |
//! | initramfs truncated, a phase failed | [`phases`] | at once |
//! | this process dies | panic hook, else the kernel's `panic=10` | 10 s |
//! | this process hangs | [`watchdog`], where the PC has one | 1 min |

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::expect_used, clippy::panic))]

mod agent;
mod console;
mod drivers;
mod exit;
mod keys;
mod mounts;
mod page;
mod phases;
mod run;
mod supervise;
mod uevent;
mod watchdog;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        return helper();
    }
    std::panic::set_hook(Box::new(|info| exit::after_panic(&info.to_string())));
    let mut pc = run::Pc::default();
    phases::run_all(&mut pc);
    run::forever(&mut pc)
}

/// What this binary does when it is not PID 1: `-q -- NAME` as the kernel calls modprobe (a PHY was found, a
/// protocol is asked for), and `sync` for the exit function, which cannot bound a call it makes itself.
fn helper() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["-q", "--", name] => match drivers::load_by_name(name) {
            0 => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        ["sync"] => {
            nix::unistd::sync();
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("cid-init is PID 1 of a node; it has nothing to do here");
            ExitCode::from(2)
        }
    }
}
