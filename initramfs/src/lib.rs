//! What goes into a first-stage image and how it becomes bytes: file plan, newc archive, compressors, kernel
//! module facts and closure. Values in, bytes out: it must never use the network, look at the host, or read a clock.

pub mod alias;
pub mod archive;
pub mod closure;
pub mod compress;
pub mod digest;
pub mod index;
pub mod module;
pub mod plan;
pub mod xz;

pub use archive::{Archive, ArchiveError, read_archive, write_archive};
pub use closure::{ClosureError, close};
pub use compress::{CompressError, Compression, compress, decompressor};
pub use index::{ModuleIndex, index_files};
pub use module::{ModuleError, ModuleFacts};
pub use plan::{Group, Node, Plan, PlanError};
pub use xz::Shelf;
