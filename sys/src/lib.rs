//! The one crate with `unsafe`: thin safe wrappers of single system calls that nix and rustix do not have.
//! It must never hold policy: no retries, no defaults, no decisions.
//!
//! | module | kernel feature |
//! |---|---|
//! | [`modules`] | `finit_module(2)`, with the flag for compressed files |
//! | [`evdev`] | which keys an input device has |
//! | [`watchdog`] | time-out of a hardware watchdog |
//! | [`descriptors`] | file descriptors inherited by number, and handed on by number |
//! | [`capabilities`] | what programs started from here inherit |
//! | [`signals`] | the signal mask of a child |
//! | [`jobs`] | a process of a job: namespaces, ids, no new privileges |
//! | [`root`] | living in another root: mount namespace, capability bounding set, ids |
//! | [`wake_on_lan`] | what wakes a network card (`SIOCETHTOOL`) |
//! | [`tcp`] | what the kernel counts of a TCP connection |
//! | [`terminal`] | columns and rows of a terminal |
//! | [`clock`] | setting and steering the clock; whether the kernel takes it as synchronised |

pub mod capabilities;
pub mod clock;
pub mod descriptors;
pub mod evdev;
pub mod jobs;
pub mod modules;
pub mod root;
pub mod signals;
pub mod tcp;
pub mod terminal;
pub mod wake_on_lan;
pub mod watchdog;

use std::io;

/// The error of a call that returned -1.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
