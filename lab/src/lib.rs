//! The virtual PC room: a network of its own, PCs with real firmware, disks with a stand-in for Windows. For tests, and for people to
//! play with. Never needed in production, and never in the way of the firmware: what a PC boots is decided by what the head answers.

pub mod accelerator;
pub mod campus;
pub mod demo;
pub mod firmware_variables;
pub mod head;
pub mod image;
pub mod lab;
pub mod machine;
mod manager;
pub mod pc;
mod plain_rom;
pub mod qmp;
pub mod rig;
pub mod room;
pub mod rooted;
pub mod run;
pub mod screen;
pub mod shipped;
pub mod stages;
pub mod windows;

pub use campus::{Campus, CampusServer};
pub use head::{Adoption, Control, DhcpMode, Head, HeadOptions};
pub use lab::{Lab, UP_LIMIT, WINDOWS_LIMIT};
pub use machine::{Disk, Firmware, First, Lead, Machine, Watchdog};
pub use pc::{Cable, Pc, Pcrs};
pub use room::Room;
