//! What PID 1 says, line by line.

use cid_protocol::supervision::{FromInit, MAX_LINE};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc::Sender;

use super::Event;

/// Lines of PID 1. An overlong one is dropped whole.
pub(super) async fn read_init(mut reader: OwnedReadHalf, sender: Sender<Event>) {
    let (mut line, mut overlong) = (Vec::new(), false);
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = reader.read(&mut buffer).await {
        for byte in buffer.get(..length).unwrap_or_default() {
            if *byte != b'\n' {
                overlong |= line.len() >= MAX_LINE;
                if !overlong {
                    line.push(*byte);
                }
                continue;
            }
            let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
            if !std::mem::take(&mut overlong)
                && let Some(message) = FromInit::parse(&text)
            {
                let _ = sender.send(Event::Init(message)).await;
            }
        }
    }
}
