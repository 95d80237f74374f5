//! A MAC address as the head names machines by it: the boot server's type under the name people use.

pub use cid_bootserver::machine::{BadMacAddress as BadMac, MacAddress as Mac};
