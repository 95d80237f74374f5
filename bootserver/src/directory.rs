//! What this crate needs of the head: what it knows of machines, and a disk.

use std::future::Future;
use std::net::Ipv4Addr;

use crate::dhcp::leases::LeaseRecord;
use crate::dhcp::rival::{Rival, Sighting};
use crate::dhcp::server::Observation;
use crate::machine::MacAddress;
use crate::policy::{Decision, Facts, Standing};

/// Implemented by `cidhead`.
pub trait Directory: Send + Sync + 'static {
    /// What is known of this machine now. Called for every packet: answers from memory.
    fn standing(&self, facts: &Facts) -> Standing;

    /// Takes note. Must not wait; what has to survive a crash goes through the other methods.
    fn observe(&self, mac: MacAddress, observation: Observation);

    /// Writes leases; resolves when they are on disk. An error means that nothing was promised.
    fn commit_leases(
        &self,
        records: Vec<LeaseRecord>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// A loader script is about to be handed out; resolves when the attempt is on disk.
    fn script_handed_out(
        &self,
        mac: MacAddress,
        image: String,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Words for the kernel command line of this boot alone: what it knows its head by, and what it proves itself with. Asked for
    /// whenever a script is rendered; a secret of one boot, so never logged and never explained.
    fn boot_words(&self, mac: MacAddress) -> String;

    /// A file of an image was asked for by the holder of this address.
    fn file_served(&self, client: Ipv4Addr, mac: Option<MacAddress>, path: &str);

    /// Another DHCP server appeared (answers stop), or has gone.
    fn rival(&self, rival: Rival, present: bool);

    /// Somebody else answered DHCP or PXE on one of our wires. Comes as often as it is heard.
    fn sighted(&self, sighting: Sighting);

    /// A decision of the policy over what is known now; the one way in which anybody asks it.
    fn decide(&self, facts: &Facts) -> Decision;
}

/// The disk did not take it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not be written: {0}")]
pub struct CommitError(pub String);
