//! What `cidbuild` is made of: recipes, kernel and package sources, stage 1, boot loaders, manifests. Knows nothing
//! of running nodes; it must never need root, and never leave a half-written image where a whole one stood.

pub mod apt;
pub mod cache;
pub mod cards;
pub mod deb;
pub mod device;
pub mod image;
pub mod inspect;
pub mod kernel;
pub mod modules;
pub mod output;
pub mod progress;
pub mod ram;
pub mod recipe;
pub mod root;
pub mod secrets;
pub mod sources;
pub mod stage2;
pub mod usb;
