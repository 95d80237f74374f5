//! Show 7: of all that PCs, their head and an administrator say from power-on to home, nothing secret is on the wire in clear but the boot
//! token. The search is told the secrets: it reads them where they belong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use cid_protocol::cmdline;
use cidlab::head::program;
use cidlab::lab::images_dir;
use cidlab::rig::{Asker, Rig};
use cidlab::run::run;

use super::times::all_say;
use super::{all_up, head_says};

const PCS: usize = 3;
const LIMIT: Duration = Duration::from_secs(60);
/// The seed of an Ed25519 key in PKCS#8 (RFC 8410, section 7) starts here and is this long.
const SEED: std::ops::Range<usize> = 16..48;

#[test]
fn nothing_secret_is_on_the_wire_but_the_boot_token() -> Result<()> {
    let rig = Rig::start("wire", PCS)?;
    let capture = Capture::start(&rig, "all.pcap")?;
    rig.power_on(10)?;
    rig.wait_up(LIMIT)?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, PCS))?;
    let asker = Asker::new(&rig)?;
    all_say(&asker, &[0, 1, 2], "all are up", LIMIT, |view| view.up() == PCS)?;
    let secrets = secrets(&rig)?;
    ensure!(secrets.len() == 2 + 2 * PCS, "{:?}", secrets.keys());
    rig.agents()[0].press_key()?;
    head_says(&rig, "one went home", LIMIT, |nodes| all_up(nodes, PCS - 1))?;
    let heard = capture.stop()?;

    ensure!(heard.frames > 100, "{} frames were captured", heard.frames);
    for (name, secret) in &secrets {
        ensure!(!heard.holds(secret), "{name} is on the wire in clear");
    }
    // The search sees what is there.
    for agent in rig.agents() {
        let line = fs::read_to_string(agent.dir().join("cmdline"))?;
        let token = cmdline::lookup(&line, cmdline::TOKEN).context("a boot token")?;
        ensure!(
            heard.holds_bytes(token.as_bytes()),
            "the token of {} was not seen",
            agent.mac()
        );
    }

    not_in_the_image(&rig, &secrets)?;

    // Control: a leak, in each of the ways in which programs leak.
    let (name, secret) = secrets.iter().next_back().context("a secret")?;
    for (number, form) in forms(secret).iter().enumerate() {
        let capture = Capture::start(&rig, &format!("leak{number}.pcap"))?;
        let file = rig.room().dir().join("leak");
        fs::write(&file, form)?;
        // In one write: one datagram, whatever bytes it has.
        let leak = format!("cat {} >/dev/udp/10.77.0.1/9", file.display());
        run(&mut rig.agents()[1].command("bash", &["-c", &leak]))?;
        ensure!(
            capture.stop()?.holds(secret),
            "form {number} of {name} leaked unseen"
        );
    }
    rig.succeeded();
    Ok(())
}

/// Neither these secrets nor anything that looks like one. (Leaks that must be found: `builder/src/secrets.rs`.)
fn not_in_the_image(rig: &Rig, secrets: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let known = rig.room().dir().join("known");
    let lines = secrets
        .values()
        .map(|secret| BASE64_STANDARD.encode(secret) + "\n");
    fs::write(&known, lines.collect::<String>())?;
    let mut verify = Command::new(program("cidbuild")?);
    verify
        .arg("verify")
        .arg(images_dir().join("minimal"))
        .args(["--no-secrets", "--known"])
        .arg(known);
    let said = run(&mut verify)?;
    ensure!(said.contains("no secret"), "{said}");
    Ok(())
}

/// What nobody may hear, by name.
fn secrets(rig: &Rig) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let authority = rig.room().dir().join("state/ca");
    for name in ["key.pem", "admin.pem"] {
        found.insert(format!("the head's {name}"), seed_of(&authority.join(name))?);
    }
    for agent in rig.agents() {
        let kept = agent.dir().join("run/cid");
        found.insert(
            format!("the key of {}", agent.mac()),
            seed_of(&kept.join("key.pem"))?,
        );
        let seat: serde_json::Value = serde_json::from_str(&fs::read_to_string(kept.join("member.json"))?)?;
        let key = seat["ticket"]["key"]["secret"].as_str().context("a group key")?;
        let key = BASE64_STANDARD.decode(key)?;
        ensure!(key.len() == 32, "a group key of {} bytes", key.len());
        found.insert(format!("the group key of {}", agent.mac()), key);
    }
    Ok(found)
}

/// Of the private key in a PEM file.
fn seed_of(file: &Path) -> Result<Vec<u8>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let body = text
        .split("-----BEGIN PRIVATE KEY-----")
        .nth(1)
        .and_then(|rest| rest.split("-----END").next())
        .with_context(|| format!("no private key in {}", file.display()))?;
    let der = BASE64_STANDARD.decode(body.split_whitespace().collect::<String>())?;
    Ok(der.get(SEED).context("a short key")?.to_vec())
}

/// How a program may write it.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        BASE64_STANDARD_NO_PAD.encode(secret).into_bytes(),
        BASE64_URL_SAFE_NO_PAD.encode(secret).into_bytes(),
    ]
}

/// tcpdump on the bridge.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    fn start(rig: &Rig, name: &str) -> Result<Self> {
        let file = rig.room().dir().join(name);
        let mut command = rig.room().command("tcpdump");
        command
            .args([
                "-i", "br0", "-n", "-U", "-s", "0", "-B", "32768", "-Z", "root", "-w",
            ])
            .arg(&file);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting tcpdump")?;
        // It has its ear on the wire once it has written the file's head.
        for _ in 0..200 {
            if fs::metadata(&file).is_ok_and(|file| file.len() >= 24) {
                return Ok(Self { child, file });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("tcpdump does not start")
    }

    fn stop(mut self) -> Result<Heard> {
        // What is in its buffers still is written.
        std::thread::sleep(Duration::from_secs(1));
        self.child.kill()?;
        self.child.wait()?;
        Ok(Heard::read(&fs::read(&self.file)?))
    }
}

/// Frames as they were, and the streams of bytes that programs hear.
struct Heard {
    frames: usize,
    bytes: Vec<Vec<u8>>,
}

impl Heard {
    fn read(pcap: &[u8]) -> Self {
        let mut frames = Vec::new();
        let mut streams: BTreeMap<Vec<u8>, (u32, Vec<u8>)> = BTreeMap::new();
        let mut rest = pcap.get(24..).unwrap_or_default();
        while let Some(length) = rest.get(8..12).and_then(|bytes| bytes.try_into().ok()) {
            let end = 16 + u32::from_le_bytes(length) as usize;
            let Some(frame) = rest.get(16..end) else { break };
            frames.push(frame.to_vec());
            if let Some((flow, sequence, payload)) = segment(frame) {
                let (next, stream) = streams.entry(flow).or_insert((sequence, Vec::new()));
                // Sent again: heard already.
                if !payload.is_empty() && sequence.wrapping_sub(*next) < 1 << 31 {
                    stream.extend_from_slice(payload);
                    *next = sequence.wrapping_add(payload.len() as u32);
                }
            }
            rest = rest.get(end..).unwrap_or_default();
        }
        let count = frames.len();
        frames.extend(streams.into_values().map(|(_, stream)| stream));
        Self {
            frames: count,
            bytes: frames,
        }
    }

    fn holds(&self, secret: &[u8]) -> bool {
        forms(secret).iter().any(|form| self.holds_bytes(form))
    }

    fn holds_bytes(&self, wanted: &[u8]) -> bool {
        let within = |bytes: &Vec<u8>| bytes.windows(wanted.len()).any(|window| window == wanted);
        self.bytes.iter().any(within)
    }
}

/// Flow, sequence number and payload of a TCP segment over IPv4.
fn segment(frame: &[u8]) -> Option<(Vec<u8>, u32, &[u8])> {
    let packet = frame.get(14..)?;
    if frame.get(12..14)? != [8, 0] || *packet.get(9)? != 6 {
        return None;
    }
    let header = usize::from(packet.first()? & 15) * 4;
    let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let tcp = packet.get(header..length)?;
    let flow = [packet.get(12..20)?, tcp.get(..4)?].concat();
    let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    Some((flow, sequence, tcp.get(data..)?))
}
