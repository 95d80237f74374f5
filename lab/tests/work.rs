//! `cidctl run` on real agents in namespaces: streams, statuses, signals, who a program is and what it sees, and what becomes of it when
//! its client or its node goes. One rig for all, since each question takes milliseconds.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cidlab::rig::Rig;
use rustix::process::Signal;

/// Four times what it takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);
const AGENTS: usize = 3;

struct Asked<'a>(&'a Rig);

impl Asked<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.head.control().command(&["run"]);
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("piped")?;
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output()?;
        let _ = writer.join();
        Ok(output)
    }

    /// Its stdout, when it ended with that status.
    fn says(&self, arguments: &[&str], input: &[u8], status: i32) -> Result<String> {
        let output = self.run(arguments, input)?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.code() == Some(status),
            "{arguments:?}: {}, not {status}: {out}{err}",
            output.status
        );
        Ok(out)
    }
}

#[test]
fn programs_run_on_agents_as_if_they_ran_here() -> Result<()> {
    let rig = Rig::that_works("work", AGENTS, |options| options)?;
    rig.power_on(10)?;
    rig.wait_up(LIMIT)?;
    let asked = Asked(&rig);
    statuses(&asked)?;
    streams(&asked)?;
    who_it_is(&asked)?;
    signals(&asked)?;
    nobody_stops_another(&asked)?;
    ends(&rig, &asked)?;
    rig.succeeded();
    Ok(())
}

fn statuses(asked: &Asked) -> Result<()> {
    asked.says(&["true"], b"", 0)?;
    asked.says(&["false"], b"", 1)?;
    asked.says(
        &["-n", "6", "--oversubscribe", "sh", "-c", "exit $CID_RANK"],
        b"",
        5,
    )?;
    asked.says(&["no-such-command"], b"", 127)?;
    asked.says(&["/usr"], b"", 126)?;
    asked.says(&["--nodes", "nobody-here", "true"], b"", 125)?;
    let full = asked.run(&["-n", "1000", "true"], b"")?;
    let text = String::from_utf8_lossy(&full.stderr);
    ensure!(
        full.status.code() == Some(125) && text.contains("--oversubscribe"),
        "{text}"
    );
    let killed = asked.run(&["sh", "-c", "kill -9 $$"], b"")?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&killed.status);
    ensure!(signal == Some(9), "{}", killed.status);
    Ok(())
}

fn streams(asked: &Asked) -> Result<()> {
    let sum = asked.says(&["sha256sum"], b"data\n", 0)?;
    ensure!(
        sum.starts_with("6667b2d1aab6a00caa5aee5af8ad9f1465e567abf1c209d15727d57b3e8f6e5f"),
        "{sum}"
    );
    // Bytes of every value, more than all windows, in at one end and out at both.
    let bytes: Vec<u8> = (0..8_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let output = asked.run(&["tee", "/dev/stderr"], &bytes)?;
    ensure!(output.status.success(), "{}", output.status);
    ensure!(
        output.stdout == bytes && output.stderr == bytes,
        "{} {}",
        output.stdout.len(),
        output.stderr.len()
    );
    let lines = asked.says(&["-n", "3", "--label", "--stdin", "all", "cat"], b"one\ntwo", 0)?;
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    ensure!(
        lines == ["0: one", "0: two", "1: one", "1: two", "2: one", "2: two"],
        "{lines:?}"
    );
    // A reader that has enough ends it, as in a pipeline of this machine; and so does a program that reads no more.
    let mut yes = asked.command(&["yes"]).stdout(Stdio::piped()).spawn()?;
    yes.stdout.take().context("piped")?.read_exact(&mut [0; 10])?;
    ensure!(!yes.wait()?.success());
    asked.says(&["head", "-c", "1"], &bytes, 0)?;
    Ok(())
}

fn who_it_is(asked: &Asked) -> Result<()> {
    let script = "id -u; id -g; id -G; umask; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; ls /proc | grep -c '^[0-9]'; \
                  ls /run | wc -l; echo $CID_RANK/$CID_SIZE $LOCAL $TMPDIR; pwd; touch /tmp/mine && ls /tmp; mknod /tmp/disk b 8 0 2>/dev/null || echo no devices";
    let mut command = asked.command(&["--user", "1000:100", "sh", "-c", script]);
    command.env("LOCAL", "travels").env("TMPDIR", "/var/nowhere");
    let output = command.current_dir("/usr/lib").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    let zero = "0000000000000000";
    let wanted = [
        "1000",
        "100",
        "100",
        "0022",
        &format!("CapEff:\t{zero}"),
        &format!("CapBnd:\t{zero}"),
        "NoNewPrivs:\t1",
    ];
    ensure!(
        lines.get(..7) == Some(&wanted[..]),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Process 1, the shell, `ls` and `grep`.
    ensure!(lines.get(7) == Some(&"4"), "{said}");
    ensure!(
        lines.get(8..) == Some(&["0", "0/1 travels /tmp", "/usr/lib", "mine", "no devices"][..]),
        "{said}"
    );
    // Root is nobody there, and nobody is root.
    ensure!(asked.says(&["id", "-u"], b"", 0)? == "65534\n");
    asked.says(&["--user", "0:0", "id"], b"", 125)?;
    // What it leaves in the background goes with it.
    asked.says(&["sh", "-c", "setsid sleep 1000 & echo left"], b"", 0)?;
    Ok(())
}

fn signals(asked: &Asked) -> Result<()> {
    for (name, signal, status) in [
        ("TERM", Signal::TERM, 15),
        ("INT", Signal::INT, 2),
        ("USR1", Signal::USR1, 10),
    ] {
        let script =
            format!("trap 'echo got {name}; exit {status}' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = asked
            .command(&["-n", "2", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = child.stdout.take().context("piped")?;
        let mut said = String::new();
        while said.matches("ready").count() < 2 {
            let mut byte = [0];
            stdout.read_exact(&mut byte)?;
            said.push(char::from(byte[0]));
        }
        rustix::process::kill_process(pid(&child)?, signal)?;
        stdout.read_to_string(&mut said)?;
        let ended = child.wait()?;
        ensure!(ended.code() == Some(status), "{name}: {ended}: {said}");
        ensure!(said.matches(&format!("got {name}")).count() == 2, "{said}");
    }
    Ok(())
}

/// Rank 0 says more than anybody reads; the other streams go on.
fn nobody_stops_another(asked: &Asked) -> Result<()> {
    let script = "if [ $CID_RANK = 0 ]; then yes >&1; else read word; echo heard $word >&2; fi";
    let mut child = asked
        .command(&["-n", "2", "--stdin", "1", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Long enough for all that may wait of its stdout to wait.
    std::thread::sleep(Duration::from_millis(300));
    child.stdin.take().context("piped")?.write_all(b"you\n")?;
    let mut heard = [0; 9];
    child.stderr.take().context("piped")?.read_exact(&mut heard)?;
    ensure!(&heard == b"heard you", "{heard:?}");
    // Others run beside it, too.
    asked.says(&["true"], b"", 0)?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn pid(child: &std::process::Child) -> Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(child.id())?).context("a process")
}

/// Processes on a node beside its agent.
fn left(rig: &Rig) -> usize {
    let comms = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let dir = rig.room().dir().to_owned();
    // The programs of this test have its folder in their words.
    comms
        .filter(|entry| {
            std::fs::read_to_string(entry.path().join("cmdline"))
                .is_ok_and(|line| line.contains("sleep") && line.contains(&marker(&dir)))
        })
        .count()
}

fn marker(dir: &std::path::Path) -> String {
    // A number of seconds that no other test sleeps.
    let sum: u32 = dir.to_string_lossy().bytes().map(u32::from).sum();
    format!("98{sum}")
}

fn ends(rig: &Rig, asked: &Asked) -> Result<()> {
    let seconds = marker(rig.room().dir());
    let mut lost = asked.command(&["-n", "2", "sleep", &seconds]).spawn()?;
    wait("the ranks to run", || left(rig) == 2 + 1)?;
    // A client that is killed takes its job along. (The client itself has the word in its command line.)
    lost.kill()?;
    lost.wait()?;
    wait("a lost client's ranks to end", || left(rig) == 0)?;
    // A node that is lost is reported; the others go on.
    let mut child = asked
        .command(&[
            "-n",
            "3",
            "--per-node",
            "1",
            "--stdin",
            "all",
            "sh",
            "-c",
            "echo on; read word; exit 4",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut on = [0; 9];
    child.stdout.as_mut().context("piped")?.read_exact(&mut on)?;
    rig.agents()[0].signal(Signal::KILL)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(125) && text.contains("lost"),
        "{}: {text}",
        output.status
    );
    Ok(())
}

fn wait(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !holds() {
        ensure!(started.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
