//! A wire: two network namespaces joined by a virtual cable, the real head at one end, real clients at the other.
//! Everything ends with the value. Root makes the namespaces directly, others inside a user namespace.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cid_protocol::api::{NodeList, NodeRow, NodeState, Status};
use cid_protocol::node::{FromNode, Hardware, Hello, Link, NODE_PROTOCOL_VERSION};
use sha2::{Digest, Sha256};

/// How long anything may take that should be immediate on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// The PC's MAC unless a test gives it another.
pub(crate) const MAC: &str = "52:54:00:00:00:01";

/// What a PC's node software says first.
pub(crate) fn hello(mac: &str, boot_id: &str, incarnation: Option<u64>) -> FromNode {
    let link = Link {
        name: "pc0".into(),
        mac: mac.into(),
        in_use: true,
        ..Link::default()
    };
    FromNode::Hello(Box::new(Hello {
        version: NODE_PROTOCOL_VERSION,
        boot_id: boot_id.into(),
        image: "minimal".into(),
        door: "pxe-bios".into(),
        hardware: Hardware {
            cpus: 2,
            links: vec![link],
            ..Hardware::default()
        },
        phases: Vec::new(),
        incarnation,
        work: 0,
    }))
}

/// A process that ends with the value.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// `kill -9`, and waits.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The two ends.
pub(crate) struct Room {
    head_end: Process,
    pc_end: Process,
    folder: tempfile::TempDir,
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// A process that holds a namespace open. `unshare` becomes `sleep`, so its process id is the namespace's.
fn hold(mut unshare: Command) -> Process {
    let child = unshare
        .args(["sh", "-c", "echo ready; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("util-linux is installed");
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut ready)
        .expect("a namespace can be made");
    Process(child)
}

/// A command in the namespace held by `process`.
fn inside(process: &Process, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &process.0.id().to_string(), "-n"]);
    if !is_root() {
        command.args(["-U", "--preserve-credentials"]);
    }
    command.arg("--").arg(program);
    command
}

/// Runs to the end; its output must be a success.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("the program is installed");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Looks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file as a manifest lists it.
pub(crate) fn artifact(text: &str) -> serde_json::Value {
    let sha256: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    serde_json::json!({ "sha256": sha256, "size": text.len() })
}

impl Room {
    /// The cable, and a `head.toml` with `more` at its top level and an image named `minimal`.
    pub(crate) fn new(more: &str) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.arg("-n");
        if !is_root() {
            unshare.arg("-r");
        }
        let head_end = hold(unshare);
        let mut unshare = inside(&head_end, "unshare");
        unshare.arg("-n");
        let pc_end = hold(unshare);
        let room = Self {
            head_end,
            pc_end,
            folder: tempfile::tempdir().expect("a folder"),
        };
        let pc = room.pc_end.0.id().to_string();
        for line in [
            "link set lo up".to_owned(),
            format!("link add head0 type veth peer name pc0 address {MAC} netns {pc}"),
            "address add 10.77.0.1/24 dev head0".to_owned(),
            "link set head0 up".to_owned(),
        ] {
            run(room.at_head("ip").args(line.split(' ')));
        }
        // Several nodes in one namespace speak with one another by way of `lo`.
        for card in ["lo", "pc0"] {
            run(room.at_pc("ip").args(["link", "set", card, "up"]));
        }
        room.write_configuration(more);
        room
    }

    fn write_configuration(&self, more: &str) {
        let folder = self.folder.path();
        let path = folder.display();
        let text = format!(
            "interface = \"head0\"\nstate_dir = \"{path}/state\"\nimages_dir = \"{path}/images\"\n\
             socket = \"{path}/head.sock\"\n{more}\n[groups.lab-a]\nimage = \"minimal\"\nhours = [\"always\"]\n"
        );
        fs::write(folder.join("head.toml"), text).expect("head.toml");
        let image = folder.join("images/minimal");
        fs::create_dir_all(image.join("bios")).expect("a folder");
        let mut artifacts = serde_json::Map::new();
        for (name, text) in [
            ("vmlinuz", "a kernel"),
            ("initrd.img", "an archive"),
            ("bios/undionly.kpxe", "iPXE"),
        ] {
            fs::write(image.join(name), text).expect("a file");
            artifacts.insert(name.to_owned(), artifact(text));
        }
        let manifest = serde_json::json!({
            "version": 1, "name": "minimal", "kernel_release": "6.12", "cmdline": "quiet", "recipe_sha256": "",
            "artifacts": artifacts, "files": {}, "nic_drivers": [], "firmware": {},
        });
        fs::write(image.join("manifest.json"), manifest.to_string()).expect("a manifest");
    }

    pub(crate) fn at_head(&self, program: &str) -> Command {
        inside(&self.head_end, program)
    }

    pub(crate) fn at_pc(&self, program: &str) -> Command {
        inside(&self.pc_end, program)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The head's command line; `before` is put in front of it (a tracer).
    pub(crate) fn head_command(&self, before: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_cidhead");
        let mut command = match before {
            [] => self.at_head(program),
            [first, rest @ ..] => {
                let mut command = self.at_head(first);
                command.args(rest).arg(program);
                command
            }
        };
        command
            .arg("--config")
            .arg(self.path("head.toml"))
            .stdin(Stdio::null());
        command
    }

    /// Starts the head; returns when it answers.
    pub(crate) fn start_head(&self, before: &[&str]) -> Process {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("head.log"))
            .expect("a log");
        let child = self.head_command(before).stderr(log).spawn();
        let mut head = Process(child.expect("the head starts"));
        wait_for("the head answers", LIMIT, || {
            assert!(
                head.0.try_wait().expect("our child").is_none(),
                "the head ended: {}",
                self.log()
            );
            self.get::<Status>("/v1/status")
        });
        head
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("head.log")).unwrap_or_default()
    }

    pub(crate) fn curl(&self, arguments: &[&str]) -> Option<String> {
        let socket = self.path("head.sock");
        let mut curl = Command::new("curl");
        let output = curl
            .args(["-sS", "-f", "--max-time", "10", "--unix-socket"])
            .arg(socket)
            .args(arguments)
            .output();
        let Output { status, stdout, .. } = output.expect("curl is installed");
        status
            .success()
            .then(|| String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Asks the control API.
    pub(crate) fn get<T: serde::de::DeserializeOwned>(&self, uri: &str) -> Option<T> {
        serde_json::from_str(&self.curl(&[&format!("http://head{uri}")])?).ok()
    }

    /// Gives the control API a command, which must be taken.
    pub(crate) fn post(&self, uri: &str, body: &str) -> NodeList {
        let url = format!("http://head{uri}");
        let answer = self.curl(&["-H", "Content-Type: application/json", "-d", body, &url]);
        serde_json::from_str(&answer.unwrap_or_else(|| panic!("{uri} {body}: {}", self.log())))
            .expect("a list")
    }

    /// The machines the head knows.
    pub(crate) fn nodes(&self) -> Vec<NodeRow> {
        self.get::<NodeList>("/v1/nodes").expect("the head answers").nodes
    }

    /// Waits until the only machine is in this state.
    pub(crate) fn wait_state(&self, state: NodeState) -> NodeRow {
        wait_for(&format!("{state:?}"), LIMIT, || {
            self.nodes().pop().filter(|node| node.state == state)
        })
    }

    /// One DHCP exchange by ISC's client, told by `conf` what to say it is. The address it was given, if any.
    pub(crate) fn dhclient(&self, conf: &str) -> Option<String> {
        let (conf_file, leases) = (self.path("dhclient.conf"), self.path("dhclient.leases"));
        fs::write(&conf_file, format!("timeout 12;\ninitial-interval 2;\n{conf}")).expect("a file");
        // A lease it remembers would make it ask for that one.
        fs::write(&leases, "").expect("a file");
        let mut client = self.at_pc("dhclient");
        client
            .args(["-1", "-v", "-d", "-sf", "/bin/true", "-cf"])
            .arg(conf_file)
            .arg("-lf")
            .arg(leases);
        client
            .arg("-pf")
            .arg(self.path("dhclient.pid"))
            .arg("pc0")
            .stdin(Stdio::null());
        let mut child = Process(
            client
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("isc-dhcp-client"),
        );
        let lines = std::io::BufReader::new(child.0.stderr.take().expect("piped"));
        for line in std::io::BufRead::lines(lines).map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("bound to ") {
                return rest.split(' ').next().map(str::to_owned);
            }
        }
        None
    }

    /// dnsmasq as somebody else's DHCP server at the PC's end.
    pub(crate) fn rival(&self) -> Process {
        run(self
            .at_pc("ip")
            .args(["address", "add", "10.77.0.9/24", "dev", "pc0"]));
        let mut dnsmasq = self.at_pc("dnsmasq");
        dnsmasq.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-interfaces",
            "--interface=pc0",
        ]);
        dnsmasq.args([
            "--dhcp-range=10.77.0.50,10.77.0.60,1h",
            "--user=root",
            "--no-ping",
            "--dhcp-authoritative",
        ]);
        dnsmasq.arg(format!(
            "--dhcp-leasefile={}",
            self.path("dnsmasq.leases").display()
        ));
        let mut child = dnsmasq
            .stderr(Stdio::piped())
            .spawn()
            .expect("dnsmasq-base is installed");
        let lines = std::io::BufReader::new(child.stderr.take().expect("piped"));
        let mut lines = std::io::BufRead::lines(lines).map_while(Result::ok);
        assert!(
            lines.any(|line| line.contains("DHCP, sockets bound")),
            "dnsmasq did not come up"
        );
        // Its pipe must not fill or break.
        std::thread::spawn(move || lines.for_each(drop));
        Process(child)
    }
}

#[allow(dead_code, reason = "tests of full mode have real clients")]
impl Room {
    /// Sends one datagram from the PC's port `from` and returns the first answer to it.
    pub(crate) fn datagram(&self, from: &str, to: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        use std::io::Write as _;
        let mut socat = self.at_pc("socat");
        let (source, destination) = (
            format!("UDP4-DATAGRAM:{to},bind={from},broadcast,reuseaddr,so-bindtodevice=pc0"),
            "-",
        );
        let child = socat
            .args(["-T2", "-t2", destination, &source])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("socat is installed");
        // The end of its input would end it before the answer is there.
        let mut input = child.stdin.take().expect("piped");
        input.write_all(bytes).expect("sent");
        let output = child.wait_with_output().expect("it ends by its time-out");
        drop(input);
        (!output.stdout.is_empty()).then_some(output.stdout)
    }
}
