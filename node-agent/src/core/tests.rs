//! Timed traces.
