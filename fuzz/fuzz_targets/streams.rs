//! Frames of jobs as a node or a client may send them: what is read can be written, and what comes through is bounded.
#![no_main]

use cid_streams::{Frame, Mux, Received};
use libfuzzer_sys::fuzz_target;

const WINDOW: u32 = 8192;

fuzz_target!(|bytes: &[u8]| {
    let mut mux = Mux::new(0..2, WINDOW);
    let (mut rest, mut got) = (bytes, 0);
    // Each frame behind its length, which is one byte here: short inputs hold many.
    while let Some((length, behind)) = rest.split_first() {
        let (body, after) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = after;
        let Ok(frame) = Frame::decode(body) else { continue };
        assert_eq!(&frame.encode()[4..], body);
        match mux.handle(frame.kind) {
            Ok(Some(Received::Data(_, data))) => got += data.len(),
            Ok(_) => {}
            Err(_) => return,
        }
    }
    assert!(got <= 6 * WINDOW as usize);
});
