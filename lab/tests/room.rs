//! The room without PCs: computers in it reach each other, and nothing outlives it.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use cidlab::run::run;
use cidlab::{Campus, Head, HeadOptions, Room};

#[test]
fn computers_in_the_room_reach_the_head_and_each_other() -> Result<()> {
    let mut room = Room::start("hosts")?;
    let capture = room.capture()?;
    let one = room.host(Some("10.77.0.2/24"))?;
    let two = room.host(Some("10.77.0.3/24"))?;
    for (host, target) in [(&one, "10.77.0.1"), (&two, "10.77.0.1"), (&one, "10.77.0.3")] {
        run(host
            .command("busybox")
            .args(["ping", "-c", "1", "-W", "5", target]))?;
    }
    run(room
        .command("busybox")
        .args(["ping", "-c", "1", "-W", "5", "10.77.0.2"]))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while room.is_captured() && std::fs::metadata(&capture).map_or(0, |file| file.len()) < 100 {
        assert!(Instant::now() < deadline, "nothing was captured");
        std::thread::yield_now();
    }
    room.succeeded();
    Ok(())
}

#[test]
fn the_machines_own_network_is_not_in_the_room() -> Result<()> {
    let room = Room::start("apart")?;
    let links = run(room.command("ip").args(["-brief", "link"]))?;
    let names: Vec<&str> = links
        .lines()
        .filter_map(|line| line.split(['@', ' ']).next())
        .collect();
    assert_eq!(names, ["lo", "br0", "head0br", "head0"]);
    assert!(run(room.command("ip").args(["route", "show", "default"]))?.is_empty());
    room.succeeded();
    Ok(())
}

#[test]
fn what_was_started_in_the_room_dies_with_it() -> Result<()> {
    let room = Room::start("dies")?;
    // A daemon: its parent is gone, and it left the session.
    let script = "setsid sleep 1000 & echo started; exec sleep 1000";
    let mut child = room
        .command("sh")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut word = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut word,
    )?;
    let target = room.target();
    let dir = room.dir().to_owned();
    room.succeeded();
    drop(room);
    assert!(!child.wait()?.success());
    assert!(
        !std::path::Path::new(&format!("/proc/{target}")).exists(),
        "the room's first process lives on"
    );
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn a_room_that_did_not_succeed_keeps_its_folder() -> Result<()> {
    let room = Room::start("kept")?;
    let dir = room.dir().to_owned();
    drop(room);
    assert!(dir.exists());
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

#[test]
fn who_calls_a_head_that_is_being_restarted_waits_and_is_answered() -> Result<()> {
    let room = Arc::new(Room::start("restart")?);
    let options = HeadOptions::new(room.dir().join("images"), "none");
    let mut head = Head::start(&room, &options)?;
    head.kill()?;
    let mut caller = room.command("curl");
    caller.args([
        "-sS",
        "--max-time",
        "30",
        "http://10.77.0.1/nothing",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ]);
    let waiting = caller.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A node is no firmware: it is told at once that there is no head, and calls again.
    let mut node = room.command("curl");
    node.args(["-sS", "--max-time", "30", "http://10.77.0.1:3101/"]);
    let refused = run(&mut node).expect_err("nobody listens to nodes");
    assert!(format!("{refused:#}").contains("onnect to"), "{refused:#}");
    std::thread::sleep(Duration::from_millis(500));
    head.up()?;
    let answer = waiting.wait_with_output()?;
    assert_eq!(String::from_utf8(answer.stdout)?, "404");
    // Control: without a service manager that keeps the sockets the same caller is refused.
    head.lose()?;
    let refused = run(&mut caller).expect_err("nobody listens");
    assert!(format!("{refused:#}").contains("onnect"), "{refused:#}");
    head.up()?;
    drop(head);
    room.succeeded();
    Ok(())
}

/// The campus's servers say nothing of booting; dnsmasq names itself as the next server, Kea names nobody.
#[test]
fn campus_servers_hand_out_addresses() -> Result<()> {
    for campus in [Campus::Dnsmasq, Campus::Kea] {
        let room = Room::start("campus")?;
        let server = campus.start(&room)?;
        let pc = room.host(None)?;
        let script = room.dir().join("print");
        std::fs::write(&script, "#!/bin/sh\nexec env\n")?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let answer = run(pc
            .command("busybox")
            .args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s"])
            .arg(script))?;
        let next_server = answer.lines().find(|line| line.starts_with("siaddr="));
        assert!(answer.contains("ip=10.77.0.1"), "{answer}");
        let wanted = (campus == Campus::Dnsmasq).then_some("siaddr=10.77.0.2");
        assert_eq!(next_server, wanted, "{answer}");
        drop(server);
        room.succeeded();
    }
    Ok(())
}
