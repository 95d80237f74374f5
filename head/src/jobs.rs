//! Programs that people run on nodes. Must not run anything itself, and writes nothing down: a job of `cidctl run` lives as long as its
//! client, its node and this head do.
//!
//! | module | holds |
//! |---|---|
//! | [`place`] | which ranks go where: a pure function |
//! | [`relay`] | jobs between clients and nodes: a core |
//! | [`door`] | clients, on the control socket |

pub mod door;
pub mod place;
pub mod relay;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use relay::Relay;

/// Clients at a time.
pub const MAX_CLIENTS: usize = 1_000;

/// What the connections share.
#[derive(Debug)]
pub struct Work {
    relay: Mutex<Relay>,
    clients: Arc<Semaphore>,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            relay: Mutex::default(),
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
        }
    }
}

impl Work {
    /// The jobs.
    pub fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
