//! From power-on to a trusted member: certificate, ticket, history. Then the head is killed, and the node still says who is there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cid_protocol::peer::PeerNodes;
use cidlab::head::program;
use cidlab::run::run;
use cidlab::{Lab, Machine, UP_LIMIT, WINDOWS_LIMIT};

/// From `up` until the node holds the head's word for it; the machine is slow.
const HISTORY_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_bios_pc_is_trusted_and_answers_without_the_head() -> Result<()> {
    trusted("trusted-bios", Machine::bios())
}

#[test]
fn a_secure_boot_pc_is_trusted_and_answers_without_the_head() -> Result<()> {
    trusted("trusted-secure", Machine::uefi_secure_boot())
}

fn trusted(name: &str, machine: Machine) -> Result<()> {
    let mut lab = Lab::start(name)?;
    let mut pc = lab.power_on(machine)?;
    let node = pc.wait_up(UP_LIMIT)?;
    let address = node.address.context("it has no address")?;
    let told = wait_told(&lab, &address, &node.name)?;
    println!("{name}: {told:?}");

    lab.head.kill()?;
    let without = ask(&lab, &address)?;
    let row = without.nodes.iter().find(|row| row.name == node.name);
    ensure!(row.is_some_and(|row| row.state == "up"), "{without:?}");
    // Control: nobody else is told.
    let identity = lab.room().dir().join("stranger.pem");
    std::fs::write(&identity, "no certificate")?;
    let refused = lab
        .room()
        .command(program("cidctl")?)
        .args(["--node", &address, "nodes", "--identity"])
        .arg(&identity)
        .output()?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");

    lab.head.up()?;
    // Nothing of the trust is on the wire in clear but the token: the hello is not.
    let frames = lab.frames(&format!("tcp port 3101 and host {address}"))?;
    ensure!(!frames.is_empty(), "no frame of the connection was captured");
    lab.release(&pc)?;
    lab.back_in_windows(pc, WINDOWS_LIMIT)
}

/// What the node at `address` says, with the administrator's certificate.
fn ask(lab: &Lab, address: &str) -> Result<PeerNodes> {
    let answer = run(lab
        .room()
        .command(program("cidctl")?)
        .args(["--node", address, "nodes", "--json", "--identity"])
        .arg(lab.room().dir().join("state/ca/admin.pem")))?;
    Ok(serde_json::from_str(&answer)?)
}

fn wait_told(lab: &Lab, address: &str, name: &str) -> Result<PeerNodes> {
    let begin = Instant::now();
    loop {
        let answer = ask(lab, address);
        if let Ok(told) = &answer
            && told.from.head_heard_ms < 25_000
            && told
                .nodes
                .iter()
                .any(|row| row.name == name && row.state == "up" && row.by_head)
        {
            return answer;
        }
        ensure!(
            begin.elapsed() < HISTORY_LIMIT,
            "the node was not told: {answer:?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
