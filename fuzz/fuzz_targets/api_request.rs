//! Bodies of requests to the control API.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_protocol::api::{AdoptRequest, DrainRequest, HoursRequest, ReleaseRequest, UndrainRequest, WakeRequest};

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<AdoptRequest>(bytes);
    let _ = serde_json::from_slice::<DrainRequest>(bytes);
    let _ = serde_json::from_slice::<HoursRequest>(bytes);
    let _ = serde_json::from_slice::<UndrainRequest>(bytes);
    let _ = serde_json::from_slice::<ReleaseRequest>(bytes);
    let _ = serde_json::from_slice::<WakeRequest>(bytes);
});
