//! Who is there: beacons before trust, membership after. Cores only: bytes, `now` and a seed come in, outputs are
//! drained. This crate must never open a socket, read a clock or draw a random number; it is `no_std`, so the
//! compiler keeps that promise.
//!
//! | module | holds |
//! |---|---|
//! | [`identity`] | which machine, and which boot of it |
//! | [`beacon`], [`announcer`], [`listener`] | greetings of nodes that nobody trusts yet |
//! | [`member`] | the membership: probing, suspicion, catching up |
//! | [`roster`], [`rumors`] | who is known; what is passed on |
//! | [`history`] | the one order of changes: the head's [`history::chronicle`], a node's [`history::replica`] |
//! | [`load`] | everybody's load |
//! | [`wire`] | a membership datagram's body |
//! | [`seal`] | its envelope: AEAD, sender, sequence, replay window |
//!
//! Time is a [`core::time::Duration`] since any fixed moment of the caller's monotonic clock.
//!
//! Beacons are not authenticated: whoever hears one may show it, and must not trust it.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod announcer;
pub mod beacon;
pub mod history;
pub mod identity;
pub mod listener;
pub mod load;
pub mod member;
pub mod random;
pub mod roster;
pub mod rumors;
pub mod seal;
pub mod wire;

pub use announcer::{Announcer, Destination, Transmit};
pub use beacon::{Beacon, MAX_BEACON, NodeState, Reject, Rejects};
pub use identity::{Boot, NodeId};
pub use listener::{Change, Heard, Listener};
pub use member::{Membership, Output};
