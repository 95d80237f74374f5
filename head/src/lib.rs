//! The head's own parts: configuration, store, registry, node connections, control API.
//! Must never speak a boot protocol itself (that is `cid-bootserver`) nor decide what a machine boots (its policy).

pub mod api;
pub mod config;
pub mod content;
pub mod core;
pub mod desk;
pub mod doctor;
pub mod hours;
pub mod interface;
pub mod jobs;
pub mod judge;
pub mod kept;
pub mod library;
pub mod mac;
pub mod measuring;
pub mod membership;
#[cfg(test)]
mod mutation;
pub mod node_files;
pub mod nodes;
pub mod nodeset;
pub mod offers;
pub mod promises;
pub mod registry;
pub mod rivals;
pub mod service;
pub mod store;
pub mod time;
pub mod timeline;
pub mod trust;
pub mod versions;
pub mod wake;
pub mod wall;
