//! Show 6: a hostile host on the bridge, with everything it heard, a head of its own, and as much noise as its processor makes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::api::{Event, NodeState};
use cidlab::head::program;
use cidlab::rig::{Hostile, Phase, Rig};

use super::books::Books;
use super::{ROOM, all_up, head_says, last_event, memory_kib, state_changes, state_of};

const LIMIT: Duration = Duration::from_secs(90);
const SEED: u64 = 0x5eed_0006;
/// What the issue asks for.
const NOISE: (u64, Duration) = (100_000, Duration::from_secs(30));
/// What an attack may add to the memory of head and agents, in KiB.
const MORE: u64 = 16 * 1024;

#[test]
fn nobody_is_listed_and_nobody_is_lost() -> Result<()> {
    println!("seed {SEED:#x}");
    let rig = Rig::start("hostile", ROOM)?;
    rig.power_on(20)?;
    rig.wait_up(LIMIT)?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;
    let mut hostile = Hostile::plug_in(&rig, SEED)?;
    let heard = hostile.listen(&rig, Duration::from_secs(30))?;
    ensure!(heard.len() > 20, "{} datagrams were heard", heard.len());
    println!("heard {} datagrams", heard.len());

    let before = memory(&rig)?;
    let event = last_event(&rig)?;
    let books = Books::open(&rig)?;
    let mut said = 0;
    for round in 0..20 {
        let flipped = hostile.flipped(&heard);
        for words in [
            &heard,
            &flipped,
            &Hostile::as_its_own(&heard),
            &Hostile::as_its_own(&flipped),
        ] {
            said += hostile.say(words)?;
        }
        ensure!(said > 0, "round {round}: nothing left the hostile host");
    }
    println!("said {said} datagrams: replayed, bit-flipped, in others' names and in its own");

    let _second = second_head(&rig, &hostile)?;
    let targets = targets(&rig)?;
    let taken = hostile.garbage(&targets, 20)?;
    println!("TLS garbage: {} connections taken", taken.iter().sum::<u64>());
    let noise = hostile.noise(&targets, &heard, NOISE.0, NOISE.1)?;
    println!(
        "noise: {} datagrams in {:.1?}, {:.0} a second (asked: {})",
        noise.sent(),
        noise.time,
        noise.sent() as f64 / noise.time.as_secs_f64(),
        NOISE.0
    );
    // Whoever was to be forgotten would be by now.
    std::thread::sleep(Duration::from_secs(20));

    let nodes = rig.head.control().nodes()?;
    // Whoever speaks DHCP is seen, and gets nothing more: the second head asked whether it was alone.
    let seen = nodes.iter().filter(|node| node.state == NodeState::Seen).count();
    ensure!(
        nodes.len() == ROOM + seen && seen <= 1 && all_up(&nodes, ROOM),
        "{}",
        super::table(&nodes)
    );
    let events = rig.head.control().events()?;
    for agent in rig.agents() {
        let changes = state_changes(&events, event, agent);
        ensure!(changes.is_empty(), "{}: {changes:?}", agent.mac());
        ensure!(
            matches!(agent.phase(), Phase::Up { .. }) && agent.ended() == 0,
            "{}: {:?}",
            agent.mac(),
            agent.phase()
        );
    }
    for (who, peak) in memory(&rig)? {
        let then = before.get(&who).copied().context("it was there before")?;
        println!("{who}: at most {peak} KiB, {then} KiB before");
        ensure!(peak <= then + MORE, "{who} took {peak} KiB, {then} KiB before");
    }
    books.close_connections(&rig, taken[0])?;
    books.close(&rig, &noise)?;
    rig.succeeded();
    Ok(())
}

#[test]
fn a_stolen_token_throws_out_both_and_nobody_else() -> Result<()> {
    let rig = Rig::start("stolen", 2)?;
    rig.power_on(20)?;
    rig.wait_up(LIMIT)?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, 2))?;
    let hostile = Hostile::plug_in(&rig, SEED)?;
    let [robbed, other] = rig.agents() else {
        bail!("two agents")
    };
    let books = Books::open(&rig)?;
    // The boot script goes over the wire in the clear.
    let line = std::fs::read_to_string(robbed.dir().join("cmdline"))?;
    let answer = hostile.redeem(&line, &other.mac(), &other.uuid())?;
    println!("a token of another machine: {answer}");
    ensure!(
        answer.contains("refused"),
        "a token counts for its machine alone: {answer}"
    );
    std::thread::sleep(Duration::from_secs(3));
    head_says(&rig, "all are up still", Duration::from_secs(1), |nodes| {
        all_up(nodes, 2)
    })?;
    let answer = hostile.redeem(&line, &robbed.mac(), &robbed.uuid())?;
    println!("the machine's own, redeemed a second time: {answer}");
    ensure!(answer.contains("refused"), "a thief is let in: {answer}");
    let took = head_says(
        &rig,
        "the robbed one is refused and the other up",
        LIMIT,
        |nodes| {
            state_of(nodes, robbed) == Some(NodeState::Refused)
                && state_of(nodes, other) == Some(NodeState::Up)
        },
    )?;
    println!("refused after {took:.1?}");
    let events = rig.head.control().events()?;
    let alarm = |event: &Event| event.kind == "token-twice" && event.mac == robbed.mac();
    ensure!(events.iter().any(alarm), "no alarm");
    let counted = books.counted(&rig)?;
    println!("head: {counted:?}");
    for reason in ["token-forged", "token-twice"] {
        let name = format!("cid_drops_total{{reason=\"{reason}\"}}");
        ensure!(counted.get(&name) == Some(&1), "{reason} is not counted once");
    }
    rig.succeeded();
    Ok(())
}

/// All that may be called: the head and every agent.
fn targets(rig: &Rig) -> Result<Vec<Ipv4Addr>> {
    let mut targets: Vec<Ipv4Addr> = vec![cidlab::room::HEAD_ADDRESS.parse()?];
    for agent in rig.agents() {
        targets.push(agent.address()?.parse()?);
    }
    Ok(targets)
}

/// Peak memory of head and agents, in KiB.
fn memory(rig: &Rig) -> Result<BTreeMap<String, u64>> {
    let mut peaks = BTreeMap::new();
    let head = rig.head.process().context("the head runs")?;
    peaks.insert("head".to_owned(), memory_kib(head, "VmHWM:")?);
    for agent in rig.agents() {
        let process = agent.process().context("the agent runs")?;
        peaks.insert(agent.mac(), memory_kib(process, "VmHWM:")?);
    }
    Ok(peaks)
}

/// Another `cidhead`, with an authority of its own. In full mode it must not even start beside the room's; without DHCP it runs.
struct SecondHead(Child);

impl Drop for SecondHead {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn second_head(rig: &Rig, hostile: &Hostile) -> Result<SecondHead> {
    let dir = rig.room().dir().join("second");
    std::fs::create_dir_all(dir.join("state"))?;
    let write = |mode: &str| -> Result<std::path::PathBuf> {
        let file = dir.join(format!("{mode}.toml"));
        let (dir, images) = (dir.display(), cidlab::lab::images_dir());
        let text = format!(
            "interface = \"eth0\"\ntime_zone = \"UTC\"\nstate_dir = \"{dir}/state\"\nimages_dir = \"{}\"\nsocket = \"{dir}/sock\"\n\
             unknown = \"boot\"\ndefault_group = \"lab\"\n[groups.lab]\nimage = \"minimal\"\nhours = [\"always\"]\n[dhcp]\nmode = \"{mode}\"\n",
            images.display()
        );
        std::fs::write(&file, text)?;
        Ok(file)
    };
    let start = |mode: &str| -> Result<Child> {
        let log = std::fs::File::create(dir.join(format!("{mode}.log")))?;
        let mut command = hostile.host().command(program("cidhead")?);
        command.arg("--config").arg(write(mode)?);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("starting the second head")
    };
    let mut full = start("full")?;
    let deadline = std::time::Instant::now() + LIMIT;
    let refused = loop {
        if let Some(status) = full.try_wait()? {
            break !status.success();
        }
        if std::time::Instant::now() > deadline {
            full.kill()?;
            full.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let said = std::fs::read_to_string(dir.join("full.log"))?;
    ensure!(
        refused,
        "a second head gives out addresses beside the first: {said}"
    );
    println!("second head: {}", said.lines().last().unwrap_or_default());
    Ok(SecondHead(start("off")?))
}
