//! Show 3: a flipped bit on the wire, a peer that lies, a manifest that is not the head's or is an old one. Each is refused with its reason, and
//! the other nodes do not notice.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cid_protocol::api::{Event, NodeState};
use cidlab::rig::{Agent, Phase, Relay, Rig};

use super::{IMAGE, Images, log, wants};

/// Four times what it takes on an idle machine, and more.
const LIMIT: Duration = Duration::from_secs(60);
/// What is cut into about twenty parts.
const BYTES: usize = 5_000_000;
const CHUNK: u64 = 256 * 1024;

fn wait_up(rig: &Rig, agents: &[usize]) -> Result<()> {
    let is_up = |agent: &Agent| matches!(agent.phase(), Phase::Up { .. });
    let wanted: Vec<String> = agents.iter().map(|number| rig.agents()[*number].mac()).collect();
    let took = rig.wait("agent that is up", LIMIT, |agent| {
        !wanted.contains(&agent.mac()) || is_up(agent)
    });
    took.map(drop)
}

/// It says so on its screen and to the head, and is not up.
fn refuses(rig: &Rig, agent: &Agent, words: &str) -> Result<()> {
    let began = std::time::Instant::now();
    loop {
        let row = rig.head.control().node(&agent.mac())?;
        let told = row
            .as_ref()
            .is_some_and(|row| row.state == NodeState::Refused && row.reason.contains(words));
        if told && log(agent)?.contains(words) {
            ensure!(
                agent.last_words().contains(words),
                "its screen: {}",
                agent.last_words()
            );
            return Ok(());
        }
        ensure!(
            !matches!(agent.phase(), Phase::Up { .. }),
            "it is up all the same"
        );
        ensure!(
            began.elapsed() < LIMIT,
            "it does not say {words:?}: {row:?}; its screen: {}",
            agent.last_words()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn events_of(rig: &Rig, kind: &str) -> Result<Vec<Event>> {
    let events = rig.head.control().events()?;
    Ok(events.into_iter().filter(|event| event.kind == kind).collect())
}

fn counted(rig: &Rig, name: &str) -> Result<u64> {
    Ok(rig.head.control().metrics()?.get(name).copied().unwrap_or(0))
}

#[test]
fn covering_a_bit_that_flips_on_the_wire_is_seen_and_what_flips_for_ever_is_refused() -> Result<()> {
    wants()?;
    let images = Images::build("wire", BYTES)?;
    let rig = Rig::rooted("wire", 3, &images.folder(), IMAGE)?;
    let [once, ever, other] = rig.agents() else {
        anyhow::bail!("three agents")
    };
    let wrong = |agent: &Agent| -> Result<usize> {
        let events = events_of(&rig, "root-wrong-chunk")?;
        Ok(events.iter().filter(|event| event.mac == agent.mac()).count())
    };
    // Nobody is there who could help: all it has goes over its bad wire.
    let bad = Relay::between(&rig, ever, 1_000)?;
    ever.power_on()?;
    refuses(&rig, ever, "what comes from the head is not what it signed")?;
    ensure!(
        bad.flipped()? >= 3 && wrong(ever)? >= 3,
        "{} events",
        wrong(ever)?
    );
    println!("every chunk damaged: {}", ever.last_words());
    ever.crash()?;
    drop(bad);

    let bad = Relay::between(&rig, once, 1)?;
    once.power_on()?;
    wait_up(&rig, &[0])?;
    ensure!(
        bad.flipped()? == 1 && wrong(once)? == 1,
        "{} events",
        wrong(once)?
    );
    let event = events_of(&rig, "root-wrong-chunk")?.pop().context("an event")?;
    println!("one chunk damaged: {}", event.text);
    other.power_on()?;
    wait_up(&rig, &[0, 2])?;
    ensure!(wrong(other)? == 0, "the other has a wire of its own");
    let name = "cid_drops_total{reason=\"root-wrong-chunk\"}";
    ensure!(counted(&rig, name)? == 1 + wrong(ever)? as u64);
    let name = "cid_refusals_total{reason=\"chunk-wrong\"}";
    ensure!(counted(&rig, name)? >= 1, "the refusal is not counted");
    // Control: who is not refused does not pass for refused.
    ensure!(refuses(&rig, other, "not what it signed").is_err());
    rig.succeeded();
    Ok(())
}

/// One bit in each chunk that this agent has: what it gives at its door from now on.
fn make_a_liar(agent: &Agent, bytes: u64) -> Result<()> {
    let process = agent.process().context("the agent runs")?;
    let path = format!("/proc/{process}/root/run/cid-root/image/root.img");
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .context(path)?;
    for at in (0..bytes).step_by(CHUNK as usize) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)?;
    }
    Ok(())
}

#[test]
fn covering_a_lying_peer_is_named_and_asked_no_more() -> Result<()> {
    wants()?;
    let images = Images::build("liar", BYTES)?;
    let rig = Rig::rooted("liar", 5, &images.folder(), IMAGE)?;
    let liar = &rig.agents()[0];
    liar.power_on()?;
    wait_up(&rig, &[0])?;
    make_a_liar(liar, images.bytes()?)?;
    let name = match liar.phase() {
        Phase::Up { name, .. } => name,
        other => anyhow::bail!("{other:?}"),
    };
    // It alone has anything: whoever asks a peer, asks it.
    for agent in &rig.agents()[1..4] {
        agent.power_on()?;
    }
    wait_up(&rig, &[1, 2, 3])?;
    let named = events_of(&rig, "root-bad-peer")?;
    let of_liar: Vec<&Event> = named.iter().filter(|event| event.mac == liar.mac()).collect();
    for event in &of_liar {
        println!("{}", event.text);
    }
    ensure!(of_liar.len() >= 2, "{named:?}");
    ensure!(
        named
            .iter()
            .all(|event| event.text.starts_with(&format!("{name} gave"))),
        "{named:?}"
    );
    ensure!(
        of_liar
            .iter()
            .any(|event| event.text.contains("no node is sent to it any more")),
        "{named:?}"
    );
    let accusations = || counted(&rig, "cid_root_faults_total{what=\"accusation\"}");
    let before = accusations()?;
    ensure!(before >= 2, "{before} accusations");
    let asked = rig.agents()[1..4]
        .iter()
        .map(|agent| Ok(log(agent)?.matches("gives wrong bytes").count()));
    let asked: Vec<usize> = asked.collect::<Result<_>>()?;
    ensure!(
        asked.iter().all(|times| *times <= 1),
        "asked again after its lie: {asked:?}"
    );

    // Who comes later is not sent to it. The control: peers that do not lie are believed.
    let late = &rig.agents()[4];
    late.power_on()?;
    wait_up(&rig, &[4])?;
    let said = log(late)?;
    ensure!(
        !said.contains("gives wrong bytes") && accusations()? == before,
        "{said}"
    );
    let from = said
        .lines()
        .find(|line| line.contains(" fetched in "))
        .context("a fetch")?;
    ensure!(
        !from.contains("from 0 PCs"),
        "honest peers were not asked: {from}"
    );
    println!("the last: {from}");
    // The liar itself is a member like others: its job is not its memory.
    ensure!(matches!(liar.phase(), Phase::Up { .. }));
    rig.succeeded();
    Ok(())
}

#[test]
fn covering_a_manifest_of_another_key_a_wrong_signature_and_an_old_one_are_refused() -> Result<()> {
    wants()?;
    let images = Images::build("crooked", 500_000)?;
    let mut rig = Rig::rooted("crooked", 2, &images.folder(), IMAGE)?;
    rig.agents()[0].power_on()?;
    wait_up(&rig, &[0])?;
    let mut first = true;
    for (how, words, counter) in [
        ("key", "signed by another key", "manifest-other-key"),
        ("signature", "signature is wrong", "manifest-bad-signature"),
        ("older", "is older than promised", "manifest-older"),
    ] {
        another_head(&mut rig, how)?;
        if first {
            rig.agents()[1].power_on()?;
        } else {
            rig.revive(&rig.agents()[1])?;
        }
        first = false;
        let node = &rig.agents()[1];
        refuses(&rig, node, words)?;
        println!("{how}: {}", node.last_words());
        let name = format!("cid_refusals_total{{reason=\"{counter}\"}}");
        ensure!(counted(&rig, &name)? >= 1, "{counter} is not counted");
        ensure!(!log(node)?.contains(" fetched in "), "it fetched what it refuses");
        ensure!(
            matches!(rig.agents()[0].phase(), Phase::Up { .. }),
            "the other is not up any more"
        );
        node.crash()?;
    }
    // The control: the same head with an honest hand.
    another_head(&mut rig, "none")?;
    rig.revive(&rig.agents()[1])?;
    wait_up(&rig, &[0, 1])?;
    ensure!(refuses(&rig, &rig.agents()[1], "signature is wrong").is_err());
    rig.succeeded();
    Ok(())
}

/// The head is killed, and another is started in its place that signs so.
fn another_head(rig: &mut Rig, how: &'static str) -> Result<()> {
    rig.head.kill()?;
    rig.head.be_crooked(Some(how));
    rig.head.up()
}
