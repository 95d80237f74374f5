//! The campus: a DHCP server that belongs to somebody else, on a computer of its own in the room. Foreign programs with their
//! own defaults; must not know anything of our head but what an administrator would copy from `cidhead dhcp-snippet`.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::room::{Host, Room};

/// Its address in the room.
pub const CAMPUS_ADDRESS: &str = "10.77.0.2";
/// What it hands out.
const POOL: (&str, &str) = ("10.77.0.150", "10.77.0.199");
const START_LIMIT: Duration = Duration::from_secs(20);

/// Whose server it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Campus {
    /// dnsmasq, which names itself in `siaddr` and says nothing about booting.
    Dnsmasq,
    /// Kea, whose `siaddr` is 0.0.0.0 and which says nothing about booting.
    Kea,
    /// dnsmasq with further lines in its configuration: those that `cidhead dhcp-snippet dnsmasq` prints.
    DnsmasqWith(String),
    /// dnsmasq that serves an iPXE of its own by TFTP and then names this script: a site that has iPXE already.
    DnsmasqWithIpxe {
        /// URL of the script.
        script: String,
    },
}

/// A server that runs. It ends when the value is dropped.
#[derive(Debug)]
pub struct CampusServer {
    process: Child,
    _host: Host,
}

impl Campus {
    /// Starts it; returns when it can be asked.
    ///
    /// # Errors
    /// When it is not installed or ends at once; with its words.
    pub fn start(&self, room: &Room) -> Result<CampusServer> {
        let host = room.host(Some(&format!("{CAMPUS_ADDRESS}/24")))?;
        let log = room.dir().join("campus.log");
        let (program, arguments) = match self {
            Self::Dnsmasq => ("dnsmasq", dnsmasq(room.dir(), "")?),
            Self::DnsmasqWith(lines) => ("dnsmasq", dnsmasq(room.dir(), lines)?),
            Self::DnsmasqWithIpxe { script } => ("dnsmasq", dnsmasq(room.dir(), &own_ipxe(script)?)?),
            Self::Kea => ("kea-dhcp4", kea(room.dir())?),
        };
        let file = fs::File::create(&log)?;
        let process = host
            .command(program)
            .args(arguments)
            .env("KEA_PIDFILE_DIR", room.dir())
            .env("KEA_LOCKFILE_DIR", room.dir())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {program} (ci/prepare installs what the lab needs)"))?;
        let mut this = CampusServer { process, _host: host };
        this.wait_ready(&log)?;
        Ok(this)
    }
}

impl CampusServer {
    /// Each says in its log when it is ready.
    fn wait_ready(&mut self, log: &Path) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let said = fs::read_to_string(log).unwrap_or_default();
            if ["DHCP, sockets bound", "DHCP4_STARTED"]
                .iter()
                .any(|ready| said.contains(ready))
            {
                return Ok(());
            }
            if self.process.try_wait()?.is_some() || Instant::now() > deadline {
                bail!(
                    "the campus DHCP server did not start: {}",
                    said.trim().replace('\n', "; ")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for CampusServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As in iPXE's own pages on chain-loading: the first question gets iPXE, the second one, iPXE's, the script.
fn own_ipxe(script: &str) -> Result<String> {
    let folder = Path::new("/usr/lib/ipxe");
    for file in ["snponly.efi", "undionly.kpxe"] {
        ensure!(
            folder.join(file).exists(),
            "no {file}: install the package ipxe (ci/prepare)"
        );
    }
    Ok(format!(
        "enable-tftp\ntftp-root={}\ndhcp-match=set:ipxe,77,iPXE\ndhcp-match=set:uefi,option:client-arch,7\n\
         dhcp-boot=tag:ipxe,{script}\ndhcp-boot=tag:!ipxe,tag:uefi,snponly.efi\n\
         dhcp-boot=tag:!ipxe,tag:!uefi,undionly.kpxe\n",
        folder.display()
    ))
}

fn dnsmasq(dir: &Path, lines: &str) -> Result<Vec<String>> {
    let config = dir.join("campus.conf");
    let (first, last) = POOL;
    let text = format!(
        "port=0\ninterface=eth0\nbind-dynamic\nuser=root\nleasefile-ro\nlog-dhcp\ndhcp-authoritative\n\
         dhcp-range={first},{last},255.255.255.0,1h\n{lines}"
    );
    fs::write(&config, text).context("writing the configuration of dnsmasq")?;
    Ok(vec![
        "--no-daemon".to_owned(),
        format!("--conf-file={}", config.display()),
    ])
}

fn kea(dir: &Path) -> Result<Vec<String>> {
    let config = dir.join("campus.json");
    let (first, last) = POOL;
    let text = json!({"Dhcp4": {
        "interfaces-config": {"interfaces": ["eth0"], "dhcp-socket-type": "raw"},
        "lease-database": {"type": "memfile", "persist": false},
        "valid-lifetime": 3600,
        "subnet4": [{"subnet": crate::room::NETWORK, "pools": [{"pool": format!("{first} - {last}")}]}],
        "loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}],
    }});
    fs::write(&config, text.to_string()).context("writing the configuration of Kea")?;
    Ok(vec!["-c".to_owned(), config.display().to_string()])
}
