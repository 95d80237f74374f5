//! Versioned types of the control API and of node connections. Types only: whoever sends or receives them
//! holds the logic. This crate must never open a socket, read a clock or decide anything.
//!
//! | module | spoken between | where it travels |
//! |---|---|---|
//! | [`api`] | `cidctl` and `cidhead` | HTTP/1.1 with JSON over a local Unix socket |
//! | [`doctor`], [`trace`] | `cidctl` and `cidhead` | part of [`api`] |
//! | [`node`] | `cid-agent` and `cidhead` | one TCP connection per node with mutual TLS, length-prefixed JSON frames |
//! | [`measure`] | `cid-agent` and `cidhead`, `cid-agent` and its peers | part of [`node`] |
//! | [`peer`] | `cidctl --node` and `cid-agent`, `cid-agent` and its peers | TCP with mutual TLS, the same frames |
//! | [`root`] | `cid-agent` and `cidhead`, `cid-agent` and its peers | part of [`node`] and [`peer`] |
//! | [`supervision`] | `cid-init` and `cid-agent` | one line per message over a socket pair |
//! | [`work`] | `cidctl run` and `cidhead`, `cidhead` and `cid-agent`, `cid-agent` and the first process of a job | control frames (`cid-streams`) |
//! | [`cmdline`] | `cidhead` and the booted node | the kernel command line |
//! | [`manifest`] | `cidbuild` and `cidhead` | `manifest.json` beside the image |
//! | [`services`] | `cidbuild` and `cid-agent` | `/etc/cid/services.json` in a root image |

#[cfg(feature = "serde")]
pub mod api;
pub mod cmdline;
#[cfg(feature = "serde")]
pub mod doctor;
#[cfg(feature = "serde")]
pub mod images;
#[cfg(feature = "serde")]
pub mod manifest;
#[cfg(feature = "serde")]
pub mod measure;
#[cfg(feature = "serde")]
pub mod node;
#[cfg(feature = "serde")]
pub mod peer;
#[cfg(feature = "serde")]
pub mod root;
#[cfg(feature = "serde")]
pub mod services;
pub mod supervision;
#[cfg(feature = "serde")]
pub mod trace;
#[cfg(feature = "serde")]
pub mod work;

/// TCP port of node connections and UDP port of beacons on the head; beacons use it between nodes too.
pub const NODE_PORT: u16 = 3101;

/// Multicast group of beacons: administratively scoped (RFC 2365, organisation-local), never routed off site.
pub const BEACON_GROUP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(239, 192, 31, 1);

/// Where `cidhead` listens for `cidctl` unless `head.toml` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/cid/head.sock";
