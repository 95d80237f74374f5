//! DHCP, TFTP and HTTP boot for lab PCs, as state machines with thin shells. Decides nothing outside [`policy`].
//!
//! facts = classify(packet), decision = policy(facts), bytes = answer(facts, decision). The head composes it through
//! [`directory::Directory`]: it knows the machines and keeps the leases, this crate knows the protocols.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod addresses;
pub mod counters;
pub mod dhcp;
pub mod directory;
pub mod files;
pub mod http;
pub mod images;
pub mod keep;
pub mod machine;
pub mod neighbours;
pub mod policy;
pub mod quirks;
pub mod roots;
pub mod site;
pub mod templates;
pub mod tftp;
pub mod windows;
