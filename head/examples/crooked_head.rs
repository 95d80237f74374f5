//! A head whose promises of root images are crooked, for the lab: all of it is the real head but the hand that signs. `CID_CROOKED` says
//! how: `key`, signed by another authority than the one that booted with the nodes; `signature`, one bit of the signature is another;
//! `older`, a manifest from before the promise; `none`, as it should be (the control). Must never be installed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cid_content::{RootManifest, Signed};
use cid_trust::Authority;
use cidhead::config::Config;
use cidhead::kept::Kept;
use cidhead::promises::Sign;
use cidhead::service;
use cidhead::trust::Trust;

fn main() -> Result<()> {
    let kept = Kept::inherit()?;
    let mut arguments = std::env::args_os().skip(1);
    let file = match (arguments.next(), arguments.next()) {
        (Some(word), Some(file)) if word == "--config" => PathBuf::from(file),
        _ => bail!("usage: crooked_head --config FILE, with CID_CROOKED"),
    };
    let how = std::env::var("CID_CROOKED").context("CID_CROOKED")?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let config = Config::read(&file)?;
    let other = Authority::generate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(service::run_signing(config, kept, |trust| {
        hand(&how, trust, other)
    }))
}

fn hand(how: &str, trust: Arc<Trust>, other: Authority) -> Sign {
    let how = how.to_owned();
    Arc::new(move |manifest: &RootManifest| match how.as_str() {
        "key" => {
            let bytes = manifest.encode().map_err(|error| error.to_string())?;
            let signature = other.sign_bytes(&bytes).map_err(|error| error.to_string())?;
            Signed::new(manifest, other.public_key(), signature).map_err(|error| error.to_string())
        }
        "signature" => {
            let mut bytes = trust.sign_root(manifest)?.encode();
            // Behind the magic word and the key.
            bytes[8 + 32] ^= 1;
            Signed::decode(&bytes).map_err(|error| error.to_string())
        }
        "older" => trust.sign_root(&RootManifest {
            sequence: manifest.sequence.saturating_sub(1),
            ..manifest.clone()
        }),
        _ => trust.sign_root(manifest),
    })
}
