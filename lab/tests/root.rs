//! Root images from power-on to `up` and home: what runs in them sees no disk, and what is wrong with them is refused with the reason.
//! The images are built here by `cidbuild`, from a folder with a static busybox.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::rooted::{Rooted, build_rooted, build_rooted_with, peak_is_as_predicted, sees_no_disk};
use cidlab::run::run;
use cidlab::{HeadOptions, Lab, Machine, Room, UP_LIMIT, WINDOWS_LIMIT};

fn lab(room: Room, name: &str, filler: usize) -> Result<Lab> {
    let images = build_rooted(room.dir(), name, filler)?;
    Lab::start_in(room, &HeadOptions::new(images, name))
}

#[test]
fn power_on_to_up_with_a_root_that_sees_no_disk() -> Result<()> {
    let lab = lab(Room::start("root")?, "small", 1_000_000)?;
    let mut pc = lab.power_on(Machine::bios().memory(768))?;
    let node = pc.wait_up(UP_LIMIT)?;
    let hardware = node.hardware.context("no hardware reported")?;
    assert!(hardware.block_devices.is_empty(), "{:?}", hardware.block_devices);
    pc.wait_serial("probe done", 0, UP_LIMIT)?;
    let image = lab.room().dir().join("images/small");
    sees_no_disk(&pc, &image)?;
    peak_is_as_predicted(&pc, &image)?;
    a_program_lives_in_the_root(&lab, &node.name)?;
    lab.release(&pc)?;
    lab.back_in_windows(pc, WINDOWS_LIMIT)
}

/// Kills the agent once, when its root is mounted and healthy.
const DIES_ONCE: &str = r#"#!/bin/busybox sh
me=$$
if [ ! -e /run/died ]; then
    (until /bin/busybox grep -q '"healthy":true' /run/cid-root/mounted.json; do /bin/busybox sleep 1; done
     : >/run/died
     /bin/busybox sleep 5; /bin/busybox kill -KILL $me) 3>&- </dev/null >/dev/null 2>&1 &
fi
exec /sbin/cid-agent.real "$@"
"#;

#[test]
fn a_killed_agent_and_a_killed_head_find_the_root_that_is_mounted() -> Result<()> {
    let room = Room::start("root-again")?;
    let rooted = Rooted {
        filler: 1_000_000,
        lines: "health = [\"/bin/ls\", \"/etc/written\"]",
        few_drivers: true,
        wrapper: Some(DIES_ONCE),
        ..Rooted::default()
    };
    let images = build_rooted_with(room.dir(), "again", &rooted)?;
    let mut lab = Lab::start_in(room, &HeadOptions::new(images, "again"))?;
    let mut pc = lab.power_on(Machine::bios().memory(512))?;
    pc.wait_up(UP_LIMIT)?;
    pc.wait_serial("again@1 is mounted already", 0, UP_LIMIT)?;
    let after = pc.serial().len();
    // Its service was ended with the agent, and is there again, once.
    pc.wait_serial("service probe: probe done", after, UP_LIMIT)?;
    let node = pc.wait_up(UP_LIMIT)?;
    assert_eq!(node.image.as_deref(), Some("again@1"));
    lab.head.kill()?;
    lab.head.up()?;
    let restarted = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let deadline = Instant::now() + UP_LIMIT;
    while pc.node()?.is_none_or(|node| node.last_seen_unix <= restarted) {
        ensure!(Instant::now() < deadline, "it did not find its head again");
        std::thread::sleep(Duration::from_secs(1));
    }
    let node = pc.wait_up(UP_LIMIT)?;
    assert_eq!(node.image.as_deref(), Some("again@1"));
    let serial = pc.serial();
    for (words, times) in [
        ("again@1 fetched in", 1),
        ("again@1 is mounted\n", 1),
        ("probe done", 2),
    ] {
        assert_eq!(
            serial.replace('\r', "").matches(words).count(),
            times,
            "{words}: {serial}"
        );
    }
    lab.release(&pc)?;
    lab.back_in_windows(pc, WINDOWS_LIMIT)
}

/// `cidctl run`: confined in the root, in its own control group, with the caller's streams; a bomb of processes stays inside.
fn a_program_lives_in_the_root(lab: &Lab, name: &str) -> Result<()> {
    let script = "cat; cat /proc/sys/kernel/hostname; id -u; cut -d: -f3 /proc/self/cgroup | cut -d/ -f2; \
                  grep -c . /proc/1/mounts >/tmp/mine && ls /tmp; ls /proc | grep -c '^[0-9]'; \
                  touch /etc/mine 2>/dev/null && echo bad; mount -t tmpfs x /tmp 2>/dev/null && echo bad; \
                  ls -d /dev/sd* /dev/nvme* /dev/mem 2>/dev/null; ls /bin/probe";
    let mut command = lab
        .head
        .control()
        .command(&["run", "--user", "1000:1000", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("piped")?.write_all(b"from here\n")?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Nobody named this PC: it has its MAC address, and no host name may have a colon.
    let host = name.replace(':', "-");
    let wanted = format!("from here\n{host}\n1000\ncid-jobs\nmine\n4\n/bin/probe\n");
    ensure!(
        output.status.success() && said == wanted,
        "{}: {said}",
        output.status
    );
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 2; echo still here";
    let mut command = lab.head.control().command(&["run", "sh", "-c", bomb]);
    let output = command.output()?;
    ensure!(
        output.stdout.ends_with(b"still here\n"),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    // Gone with its job: the next one has the node for itself.
    let said = lab
        .head
        .control()
        .ask(&["run", "sh", "-c", "ls /proc | grep -c '^[0-9]'"])?;
    ensure!(said.trim() == "4", "{said}");
    Ok(())
}

/// The PC says why on its screen and to the head, and is in its own Windows a minute later.
fn refused(lab: Lab, machine: Machine, words: &str) -> Result<()> {
    let mut pc = lab.power_on(machine)?;
    pc.wait_serial(words, 0, UP_LIMIT)?;
    let node = pc.node()?.context("the head does not know this PC")?;
    ensure!(node.state != NodeState::Up, "it is up all the same");
    pc.wait_windows(WINDOWS_LIMIT + Duration::from_secs(60))?;
    let trace = lab.ctl(&["trace", &pc.mac(), "--all", "--json"])?;
    ensure!(
        trace.contains(words),
        "`cidctl trace` does not say {words:?}:\n{trace}"
    );
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    drop(pc);
    lab.succeeded();
    Ok(())
}

#[test]
fn too_little_memory_is_refused_with_the_figures() -> Result<()> {
    let lab = lab(Room::start("root-ram")?, "large", 200_000_000)?;
    refused(lab, Machine::bios().memory(256), "too little memory: it takes ")
}

/// The head's copy, as it lies in the folder that the head serves from.
fn kept(lab: &Lab, file: &str) -> Result<PathBuf> {
    let found = run(Command::new("find")
        .arg(lab.room().dir().join("state"))
        .args(["-name", file, "-type", "f"]))?;
    found
        .lines()
        .next()
        .map(PathBuf::from)
        .with_context(|| format!("no {file}"))
}

#[test]
fn one_flipped_byte_on_the_heads_disk_is_refused() -> Result<()> {
    let lab = lab(Room::start("root-flipped")?, "small", 1_000_000)?;
    let path = kept(&lab, "root.img")?;
    let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 500_000)?;
    file.write_all_at(&[byte[0] ^ 1], 500_000)?;
    refused(lab, Machine::bios().memory(768), "the head's copy is damaged")
}
