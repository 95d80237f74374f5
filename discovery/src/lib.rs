//! Beacons: who is there, said by multicast and to the head. Cores only: bytes, `now` and a seed come in,
//! outputs are drained. This crate must never open a socket, read a clock or draw a random number; it is
//! `no_std`, so the compiler keeps that promise.
//!
//! | module | holds |
//! |---|---|
//! | [`beacon`] | the datagram: encode, strict decode, typed [`Reject`]s |
//! | [`announcer`] | when a node says what, and to whom |
//! | [`listener`] | a bounded table of who was heard |
//!
//! Time is a [`core::time::Duration`] since any fixed moment of the caller's monotonic clock.
//!
//! Beacons are not authenticated yet: whoever hears one may show it, and must not trust it.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod announcer;
pub mod beacon;
pub mod listener;

pub use announcer::{Announcer, Destination, Transmit};
pub use beacon::{Beacon, MAX_BEACON, NodeId, NodeState, Reject, Rejects};
pub use listener::{Change, Heard, Listener};
