//! Conversations over in-memory streams, and mutated frames by the ten thousand.

use cid_protocol::node::{Hardware, Hello, Leaving, Link, Load, NODE_PROTOCOL_VERSION};
use tokio::io::DuplexStream;

use super::*;
use crate::config::Config;
use crate::mutation::Random;
use crate::registry::Registry;
use crate::store::Store;

const MAC: &str = "52:54:00:00:00:01";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);

/// A head with one adopted machine, without sockets.
fn head(folder: &std::path::Path) -> Arc<Core> {
    let text = "interface = \"e0\"\n[groups.lab-a]\nhours = [\"always\"]\nmatch = [\"52:54:00:*\"]";
    let config = Config::parse(std::path::Path::new("head.toml"), text).unwrap();
    let (store, contents) = Store::open(folder).unwrap();
    let core = Core::start(store, crate::wake::Power::new(Vec::new()), |now| {
        Registry::new(&config, contents.machines, now)
    });
    let mac = MAC.parse().unwrap();
    let seen = crate::registry::Observation::Heard;
    core.act(|registry, now| registry.handle_observation(now, mac, seen))
        .1
        .unacknowledged();
    core
}

fn hello() -> FromNode {
    let link = Link {
        name: "eth0".into(),
        mac: MAC.into(),
        in_use: true,
        ..Link::default()
    };
    FromNode::Hello(Box::new(Hello {
        version: NODE_PROTOCOL_VERSION,
        boot_id: "b1".into(),
        image: "minimal".into(),
        door: "pxe-bios".into(),
        hardware: Hardware {
            links: vec![link],
            cpus: 2,
            ..Hardware::default()
        },
        phases: Vec::new(),
        incarnation: None,
    }))
}

fn bytes(message: &FromNode) -> Vec<u8> {
    let body = serde_json::to_vec(message).unwrap();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

async fn answer(stream: &mut DuplexStream) -> ToNode {
    let length = stream.read_u32().await.unwrap();
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

fn dial(core: &Arc<Core>) -> (DuplexStream, tokio::task::JoinHandle<Ended>) {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let core = Arc::clone(core);
    (
        near,
        tokio::spawn(async move { converse(&core, far, ADDRESS).await }),
    )
}

#[tokio::test]
async fn a_node_asks_for_the_time_and_its_clock_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let (mut node, _task) = dial(&core);
    node.write_all(&bytes(&hello())).await.unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Welcome(_)));
    // Client mode, version 4, its transmit timestamp an hour behind: a clock in the wrong zone.
    let behind = Duration::from_secs(3_600);
    let mut packet = [0; time::PACKET];
    packet[0] = 0x23;
    let seconds = (crate::wall::unix_now() - behind).as_secs() + 2_208_988_800;
    packet[40..44].copy_from_slice(&(seconds as u32).to_be_bytes());
    let mut heard_unix_us = None;
    for _ in 0..2 {
        let question = TimeQuestion {
            packet: BASE64.encode(packet),
            heard_unix_us,
        };
        node.write_all(&bytes(&FromNode::Time(question))).await.unwrap();
        let ToNode::Time { packet: told } = answer(&mut node).await else {
            panic!("no time")
        };
        let told = BASE64.decode(told).unwrap();
        assert_eq!((told[0], &told[24..32]), (0x24, &packet[40..48]));
        heard_unix_us = Some(((seconds - 2_208_988_800) * 1_000_000).saturating_sub(5));
    }
    let clock = |core: &Core| core.read(|registry| registry.rows(&registry.everyone())[0].clock_ahead_us);
    let ahead = clock(&core).expect("measured");
    assert!((-3_601_500_000..-3_598_500_000).contains(&ahead), "{ahead}");
    // Nonsense is counted and costs nobody the connection.
    let nonsense = TimeQuestion {
        packet: "AAAA".into(),
        heard_unix_us: Some(u64::MAX),
    };
    node.write_all(&bytes(&FromNode::Time(nonsense))).await.unwrap();
    node.write_all(&bytes(&FromNode::Pulse(Load::default())))
        .await
        .unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Pulse { .. }));
    assert_eq!(core.drops.all()["node-bad-time-question"], 1);
}

#[tokio::test]
async fn a_node_joins_pulses_and_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let (mut node, task) = dial(&core);
    node.write_all(&bytes(&hello())).await.unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Welcome(welcome) if welcome.name == MAC));
    node.write_all(&bytes(&FromNode::Pulse(Load::default())))
        .await
        .unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Pulse { time_unix_ms, .. } if time_unix_ms > 0));
    let (result, pending) = core.act(|registry, now| registry.release(now, "@*"));
    result.unwrap();
    pending.done().await.unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Release { .. }));
    drop(node);
    assert!(matches!(task.await.unwrap(), Ended::Closed));
    assert_eq!(core.connection_count(), 0);
}

#[tokio::test]
async fn who_breaks_the_rules_is_dropped_for_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let pulse = bytes(&FromNode::Pulse(Load::default()));
    let table: [(Vec<u8>, &str); 4] = [
        (
            (MAX_FRAME as u32 + 1).to_be_bytes().to_vec(),
            "node-frame-too-long",
        ),
        (b"\0\0\0\x02{]".to_vec(), "node-not-a-message"),
        (pulse, "node-no-hello"),
        ([bytes(&hello()), bytes(&hello())].concat(), "node-hello-twice"),
    ];
    for (input, reason) in table {
        let (mut node, task) = dial(&core);
        node.write_all(&input).await.unwrap();
        assert_eq!(task.await.unwrap().drop_reason(), Some(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let (_node, task) = dial(&core);
    assert!(matches!(task.await.unwrap(), Ended::Silent));
}

#[test]
fn one_address_has_few_places() {
    let counts = Arc::new(PerAddress::default());
    let held: Vec<_> = (0..MAX_PER_ADDRESS)
        .map(|_| PerAddress::take(&counts, ADDRESS).unwrap())
        .collect();
    assert!(PerAddress::take(&counts, ADDRESS).is_none());
    drop(held);
    assert!(PerAddress::take(&counts, ADDRESS).is_some());
}

/// 20,000 mutated conversations with the seed below: none may panic, hang or leave a connection behind; each is
/// counted by how it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_frames_never_panic_and_every_end_is_counted() {
    const SEED: u64 = 3101;
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let mut random = Random::new(SEED);
    let going_home = FromNode::GoingHome {
        reason: "key pressed".into(),
        leaving: Leaving::LocalBoot,
        steps: Vec::new(),
    };
    let valid = [
        hello(),
        FromNode::Pulse(Load {
            load1: 0.5,
            memory_available_kib: 100,
        }),
        going_home,
    ];
    let mut ends = BTreeMap::new();
    let mut joined = 0_u32;
    for _ in 0..20_000 {
        // Every second one is broken anywhere, the others in the JSON behind a whole hello.
        let input = if random.below(2) == 0 {
            let mut input = valid.iter().flat_map(bytes).collect();
            random.mutate(&mut input);
            input
        } else {
            let mut body = serde_json::to_vec(&valid[1 + random.below(2)]).unwrap();
            random.mutate(&mut body);
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            [bytes(&valid[0]), length.to_vec(), body].concat()
        };
        let (mut node, task) = dial(&core);
        node.write_all(&input).await.unwrap();
        node.shutdown().await.unwrap();
        let ended = task.await.expect("no panic");
        *ends.entry(ended.drop_reason().unwrap_or("none")).or_insert(0_u32) += 1;
        // The duplex keeps what was answered.
        let mut first = [0; 4];
        joined += u32::from(node.read_exact(&mut first).await.is_ok());
    }
    println!("seed {SEED}: {ends:?}, {joined} reached the registry");
    assert_eq!(ends.values().sum::<u32>(), 20_000);
    assert!(joined >= 10_000, "only {joined} reached the registry");
    assert_eq!(core.connection_count(), 0);
}
