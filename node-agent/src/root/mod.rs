//! The root image of this node: fetched from the head and from other nodes, checked, mounted, its services kept running. Must never
//! write a byte that was not checked against the signed tree, nor believe a peer or the wire.
//!
//! | module | holds |
//! |---|---|
//! | [`task`], [`fetch`] | the way from a promise to a mounted root |
//! | [`memory`], [`services`], [`hosts`], [`users`] | cores: does it fit, when is a service started, texts |
//! | [`store`] | the image's file, in memory |
//! | [`progress`] | a core: how far it is, in words. Which chunk comes from whom is decided in `cid-content` |
//! | [`http`], [`peer`], [`workers`], [`serve`] | chunks from the head, from other nodes, and for them |
//! | [`mount`], [`processes`], [`health`] | from the file to a root that programs live in |

mod fetch;
mod health;
pub(crate) mod hosts;
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod peer;
pub(crate) mod processes;
mod progress;
pub(crate) mod serve;
pub(crate) mod services;
pub(crate) mod store;
pub(crate) mod task;
pub(crate) mod users;
mod workers;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cid_content::{Bitmap, Shape};

/// Where the head serves images, as it serves boot loaders.
const HEAD_HTTP_PORT: u16 = 80;

/// A set of chunks as it travels.
fn encode_set(set: &Bitmap) -> String {
    STANDARD.encode(set.as_bytes())
}

/// The bytes of a set as a peer wrote it; `None` when it is no base64, or more than the image has chunks.
fn decode_set(text: &str, shape: Shape) -> Option<Vec<u8>> {
    let most = usize::try_from(shape.chunks()).ok()?.div_ceil(8).div_ceil(3) * 4;
    (text.len() <= most).then(|| STANDARD.decode(text))?.ok()
}

#[cfg(test)]
mod tests;
