//! What `cidctl doctor` finds. `GET /v1/doctor`. Stable as [`crate::api`] is.

use serde::{Deserialize, Serialize};

/// `GET /v1/doctor`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name, kebab-case (`ports`, `interface`, `image`, …).
    pub check: String,
    /// How it is.
    pub level: Level,
    /// One line in plain words.
    pub text: String,
    /// What to do; empty when there is nothing to do.
    #[serde(default)]
    pub remedy: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// Works, or could not be looked at; worth a look.
    Warn,
    /// PCs will not boot or join like this.
    Fail,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &str, text: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, text, "")
    }

    /// Worth a look.
    pub fn warn(check: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, text, remedy)
    }

    /// Must be mended.
    pub fn fail(check: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, text, remedy)
    }

    fn new(check: &str, level: Level, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            level,
            text: text.into(),
            remedy: remedy.into(),
        }
    }
}
