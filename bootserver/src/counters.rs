//! Drops and refusals by reason. Reasons are ours, so the table is as small as the list of them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

/// Counters since start.
#[derive(Debug, Default)]
pub struct Counters(Mutex<BTreeMap<String, u64>>);

impl Counters {
    /// Adds one.
    pub fn count(&self, reason: &impl Display) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *map.entry(reason.to_string()).or_default() += 1;
    }

    /// All of them.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
