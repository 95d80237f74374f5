//! A head small enough for a test: one adopted machine at 127.0.0.1, one image on disk, everything else the real parts.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cid_bootserver::addresses::Addresses;
use cid_bootserver::counters::Counters;
use cid_bootserver::dhcp::leases::LeaseRecord;
use cid_bootserver::dhcp::rival::{Rival, Sighting};
use cid_bootserver::dhcp::server::Observation;
use cid_bootserver::directory::{CommitError, Directory};
use cid_bootserver::files::Files;
use cid_bootserver::machine::MacAddress;
use cid_bootserver::policy::{self, Decision, Facts, Standing};
use cid_bootserver::site::{GroupSettings, Offers};
use sha2::{Digest, Sha256};

use super::common::{HEAD, adopted, mac};

pub struct TestDesk {
    offers: Arc<Offers>,
    asked: AtomicU64,
    served: AtomicU64,
}

impl Directory for TestDesk {
    fn standing(&self, _facts: &Facts) -> Standing {
        adopted()
    }

    fn observe(&self, _mac: MacAddress, _observation: Observation) {}

    async fn commit_leases(&self, _records: Vec<LeaseRecord>) -> Result<(), CommitError> {
        Ok(())
    }

    async fn script_handed_out(&self, _mac: MacAddress, _image: String) -> Result<(), CommitError> {
        Ok(())
    }

    fn boot_words(&self, _mac: MacAddress) -> String {
        "cid.token=one".to_owned()
    }

    fn file_served(&self, _client: Ipv4Addr, _mac: Option<MacAddress>, _path: &str) {
        self.served.fetch_add(1, Ordering::SeqCst);
    }

    fn rival(&self, _rival: Rival, _present: bool) {}

    fn sighted(&self, _sighting: Sighting) {}

    fn decide(&self, facts: &Facts) -> Decision {
        self.asked.fetch_add(1, Ordering::SeqCst);
        policy::decide(facts, &self.standing(facts), &self.offers.current().site)
    }
}

pub struct Room {
    pub files: Files<TestDesk>,
    desk: Arc<TestDesk>,
    counters: Arc<Counters>,
    _folder: tempfile::TempDir,
}

impl Room {
    pub fn new() -> Self {
        Self::with_kernel(&[b'x'; 100])
    }

    /// With a kernel of these bytes.
    pub fn with_kernel(kernel: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        write_image(folder.path(), kernel);
        let group = GroupSettings {
            image: "minimal".to_owned(),
            kernel_args: String::new(),
            bail_out_secs: 600,
            patience_secs: 60,
        };
        let groups = BTreeMap::from([("lab-a".to_owned(), group)]);
        let offers = Arc::new(Offers::load(HEAD, folder.path().to_owned(), None, groups));
        let desk = Arc::new(TestDesk {
            offers: Arc::clone(&offers),
            asked: AtomicU64::new(0),
            served: AtomicU64::new(0),
        });
        let lease = LeaseRecord {
            mac: mac(1),
            address: Ipv4Addr::LOCALHOST,
            expires_unix: u64::MAX,
        };
        let counters = Arc::new(Counters::default());
        let addresses = Arc::new(Addresses::new(&[lease]));
        let files = Files::new(Arc::clone(&desk), offers, addresses, Arc::clone(&counters));
        Self {
            files,
            desk,
            counters,
            _folder: folder,
        }
    }

    /// How often the policy was asked.
    pub fn asked(&self) -> u64 {
        self.desk.asked.load(Ordering::SeqCst)
    }

    /// Files handed over.
    pub fn served(&self) -> u64 {
        self.desk.served.load(Ordering::SeqCst)
    }

    /// Drops by reason.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        self.counters.snapshot()
    }
}

/// An image whose files have a hundred bytes each, but for the kernel.
fn write_image(images: &std::path::Path, kernel: &[u8]) {
    let folder = images.join("minimal");
    std::fs::create_dir_all(folder.join("efi")).expect("the folder is ours");
    let mut artifacts = serde_json::Map::new();
    for path in [
        "vmlinuz",
        "initrd.img",
        "efi/shimx64.efi",
        "efi/grubx64.efi",
        "efi/mmx64.efi",
    ] {
        let content = if path == "vmlinuz" { kernel } else { &[b'x'; 100] };
        std::fs::write(folder.join(path), content).expect("the folder is ours");
        let sha256: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        artifacts.insert(
            path.to_owned(),
            serde_json::json!({ "sha256": sha256, "size": content.len() }),
        );
    }
    let manifest = serde_json::json!({
        "version": 1, "name": "minimal", "kernel_release": "6.12", "cmdline": "quiet", "recipe_sha256": "",
        "artifacts": artifacts, "files": {}, "nic_drivers": [], "firmware": {},
    });
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).expect("the folder is ours");
}
