//! stub
/// Bytes that sealing adds.
pub const OVERHEAD: usize = 54;
