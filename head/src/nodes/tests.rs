//! Conversations over in-memory streams, and mutated frames by the ten thousand.

use std::net::SocketAddr;
use std::sync::LazyLock;

use cid_protocol::api::NodeState;
use cid_protocol::cmdline;
use cid_protocol::node::{Hardware, Hello, Leaving, Link, Load, NODE_PROTOCOL_VERSION};
use cid_trust::{Authority, Expect, Identity, Pin, PrivateKey, client_config, server_name};
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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
        work: 0,
    }))
}

fn bytes(message: &FromNode) -> Vec<u8> {
    let body = serde_json::to_vec(message).unwrap();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

async fn answer(stream: &mut Node) -> ToNode {
    let length = stream.read_u32().await.unwrap();
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

type Node = TlsStream<DuplexStream>;
type Conversation = JoinHandle<Ended>;

/// One authority for all tests of this file.
fn trust() -> Arc<Trust> {
    static TRUST: LazyLock<Arc<Trust>> = LazyLock::new(|| {
        let authority = Authority::generate().unwrap();
        Arc::new(Trust::new(authority, Duration::from_secs(120)).unwrap())
    });
    Arc::clone(&TRUST)
}

fn pin() -> Pin {
    trust().pin_word().rsplit('=').next().unwrap().parse().unwrap()
}

/// Without TLS, and what comes of it.
fn knock(core: &Arc<Core>) -> (DuplexStream, Conversation) {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let core = Arc::clone(core);
    let task = tokio::spawn(async move { greet(&core, &trust(), far, ADDRESS).await });
    (near, task)
}

async fn dial_as(core: &Arc<Core>, identity: Option<&Identity>) -> (Node, Conversation) {
    let (near, task) = knock(core);
    let config = client_config(pin(), Expect::Head, identity).unwrap();
    let connector = TlsConnector::from(config);
    (connector.connect(server_name(), near).await.unwrap(), task)
}

/// What the boot script of the machine carries now.
fn token(core: &Arc<Core>) -> String {
    let words = trust().boot_words(core.now().unix_ms, MAC.parse().unwrap(), "");
    cmdline::lookup(&words, cmdline::TOKEN).unwrap().to_owned()
}

fn enrolment(token: &str, key: &PrivateKey) -> FromNode {
    FromNode::Enroll(Box::new(Enroll {
        version: NODE_PROTOCOL_VERSION,
        token: token.to_owned(),
        mac: MAC.to_owned(),
        uuid: String::new(),
        boot_id: "b1".to_owned(),
        public_key: cid_trust::encode(&key.public_key()),
    }))
}

/// The answer to an enrolment.
async fn redeem(core: &Arc<Core>, token: &str, key: &PrivateKey) -> ToNode {
    let (mut node, _) = dial_as(core, None).await;
    node.write_all(&bytes(&enrolment(token, key))).await.unwrap();
    answer(&mut node).await
}

/// A boot with a certificate.
async fn enrolled(core: &Arc<Core>) -> Identity {
    let key = PrivateKey::generate().unwrap();
    let ToNode::Certificate(certificate) = redeem(core, &token(core), &key).await else {
        panic!("no certificate");
    };
    Identity::from_message(key, &certificate.leaf, &certificate.authority).unwrap()
}

async fn dial(core: &Arc<Core>) -> (Node, Conversation) {
    let identity = enrolled(core).await;
    dial_as(core, Some(&identity)).await
}

#[tokio::test]
async fn a_node_asks_for_the_time_and_its_clock_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let (mut node, _task) = dial(&core).await;
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
    let (mut node, task) = dial(&core).await;
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

/// The PC restarts the moment its words are out: the head's answers find nobody, and what it said waits to be read.
#[tokio::test]
async fn the_last_words_of_a_node_are_heard_though_nothing_can_be_said_to_it() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let core = head(folder.path());
        let (mut node, task) = dial(&core).await;
        node.write_all(&bytes(&hello())).await.unwrap();
        assert!(matches!(answer(&mut node).await, ToNode::Welcome(_)));
        let mut words = bytes(&FromNode::Pulse(Load::default())).repeat(8);
        words.extend(bytes(&FromNode::GoingHome {
            reason: "key pressed".into(),
            leaving: Leaving::LocalBoot,
            steps: Vec::new(),
        }));
        node.write_all(&words).await.unwrap();
        drop(node);
        task.await.unwrap();
        let row = core.read(|registry| registry.rows(&registry.everyone())[0].clone());
        assert_eq!(
            (row.state, row.reason.as_str()),
            (NodeState::GoingHome, "key pressed")
        );
    }
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
        let (mut node, task) = dial(&core).await;
        node.write_all(&input).await.unwrap();
        assert_eq!(task.await.unwrap().drop_reason(), Some(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let (_node, task) = knock(&core);
    assert_eq!(task.await.unwrap().drop_reason(), Some("tls-late"));
}

/// The word by which a caller of the real port is counted, who says this and hangs up (or resets the connection).
async fn counted(core: &Arc<Core>, port: SocketAddr, says: &[u8], resets: bool) -> Vec<&'static str> {
    let before = core.drops.all();
    let mut caller = TcpStream::connect(port).await.unwrap();
    caller.write_all(says).await.unwrap();
    if resets {
        // So that the bytes are not what it is refused for.
        tokio::time::sleep(Duration::from_millis(50)).await;
        caller.set_zero_linger().unwrap();
    } else {
        caller.shutdown().await.unwrap();
        let _ = timeout(Duration::from_secs(5), caller.read_to_end(&mut Vec::new())).await;
    }
    drop(caller);
    for _ in 0..200 {
        let now = core.drops.all();
        let more: Vec<_> = now
            .iter()
            .filter(|(word, count)| before.get(*word) != Some(count))
            .map(|(word, _)| *word)
            .collect();
        if !more.is_empty() {
            return more;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Vec::new()
}

#[tokio::test]
async fn every_connection_that_comes_to_nothing_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap();
    let door = tokio::spawn(serve(Arc::clone(&core), trust(), listener));
    let promised = [&[22, 3, 1, 4, 0][..], &[0xa5; 100]].concat();
    let broken = [&[22, 3, 1, 0, 100][..], &[0xa5; 100]].concat();
    let table: [(&[u8], bool, &str); 6] = [
        (b"", false, "tls-cut-short"),
        (b"\x16", false, "tls-cut-short"),
        (&promised, false, "tls-cut-short"),
        (&broken, false, "tls-not-tls"),
        (b"GET / HTTP/1.0\r\n\r\n", false, "tls-not-tls"),
        (&promised, true, "tls-transport"),
    ];
    for (says, resets, wanted) in table {
        assert_eq!(counted(&core, port, says, resets).await, [wanted], "{says:?}");
    }
    let mut held = Vec::new();
    for _ in 0..MAX_PER_ADDRESS {
        held.push(TcpStream::connect(port).await.unwrap());
    }
    let all = MAX_PER_ADDRESS as u64 + table.len() as u64;
    while core.drops.connections() < all {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        counted(&core, port, b"", false).await,
        ["node-too-many-connections"]
    );
    drop(held);
    let sum = || core.drops.all().values().sum::<u64>();
    let _ = timeout(Duration::from_secs(5), async {
        while sum() < core.drops.connections() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(sum(), core.drops.connections(), "{:?}", core.drops.all());
    door.abort();
}

/// The word that the door counts such a caller by.
async fn word(core: &Arc<Core>, identity: Option<&Identity>, message: FromNode) -> Option<&'static str> {
    let (mut node, task) = dial_as(core, identity).await;
    // It may have been closed already.
    let _ = node.write_all(&bytes(&message)).await;
    task.await.unwrap().drop_reason()
}

#[tokio::test]
async fn only_who_has_a_certificate_in_force_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    assert_eq!(word(&core, None, hello()).await, Some("node-not-enrolled"));
    // Signed by our authority, but on nobody's list: what a thief of the key could make is not enough either.
    let authority = Authority::generate().unwrap();
    let node = Peer::node(&"0a".repeat(16)).unwrap();
    let unlisted = {
        let key = PrivateKey::generate().unwrap();
        let id = cid_discovery::NodeId([7; 16]);
        let leaf = trust().sign(id, &key.public_key()).unwrap();
        Identity::new(key, leaf, trust().certificate().to_vec()).unwrap()
    };
    assert_eq!(
        word(&core, Some(&unlisted), hello()).await,
        Some("node-not-listed")
    );
    // Another cluster's.
    let foreign = authority.issue(&node).unwrap();
    let (near, task) = knock(&core);
    let config = client_config(pin(), Expect::Head, Some(&foreign)).unwrap();
    let _stream = TlsConnector::from(config).connect(server_name(), near).await;
    assert_eq!(task.await.unwrap().drop_reason(), Some("tls-other-authority"));
    // No TLS at all.
    let (mut near, task) = knock(&core);
    near.write_all(&bytes(&hello())).await.unwrap();
    assert_eq!(task.await.unwrap().drop_reason(), Some("tls-not-tls"));
    // The control.
    let identity = enrolled(&core).await;
    let (mut node, _task) = dial_as(&core, Some(&identity)).await;
    node.write_all(&bytes(&hello())).await.unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Welcome(_)));
}

#[tokio::test]
async fn a_stolen_token_revokes_both_and_a_lost_answer_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let core = head(folder.path());
    let (own, thief) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let (token, older) = (token(&core), token(&core));
    let ToNode::Certificate(first) = redeem(&core, &token, &own).await else {
        panic!("no certificate");
    };
    let ToNode::Certificate(again) = redeem(&core, &token, &own).await else {
        panic!("no certificate the second time");
    };
    assert_eq!(first, again);
    let identity = Identity::from_message(own, &first.leaf, &first.authority).unwrap();
    let (mut node, task) = dial_as(&core, Some(&identity)).await;
    node.write_all(&bytes(&hello())).await.unwrap();
    assert!(matches!(answer(&mut node).await, ToNode::Welcome(_)));

    // Another token of the same boot, another key: as good as the same one.
    let refused = redeem(&core, &older, &thief).await;
    assert!(
        matches!(&refused, ToNode::Refused { reason } if reason.contains("twice")),
        "{refused:?}"
    );
    assert!(matches!(task.await.unwrap(), Ended::ClosedByHead | Ended::Closed));
    assert_eq!(
        word(&core, Some(&identity), hello()).await,
        Some("node-not-listed")
    );
    let mac = MAC.parse().unwrap();
    let record = core.read(|registry| registry.record(mac).cloned()).unwrap();
    assert_eq!(record.state, NodeState::Refused);
    assert!(record.hold.is_some_and(|hold| hold.contains("revoked")));
    assert_eq!(core.drops.all().get("token-twice"), Some(&1));
    // Neither key gets anything more by these tokens, whoever comes.
    for token in [&token, &older] {
        assert!(matches!(
            redeem(&core, token, &thief).await,
            ToNode::Refused { .. }
        ));
    }
    core.store().submit(Vec::new()).unwrap().done().await.unwrap();
    let events = core.store().events(None, 100).unwrap();
    assert!(events.iter().any(|event| event.kind == "token-twice"));
    // On disk: a head that starts again knows.
    drop(core);
    let (_store, contents) = loop {
        match Store::open(folder.path()) {
            Ok(opened) => break opened,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert!(contents.credentials[0].1.leaf.is_empty());
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
    let known = Caller::Certified(Fingerprint::of(enrolled(&core).await.leaf()));
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
        // Inside TLS: as one with a certificate, or as a stranger.
        let caller = if random.below(8) == 0 { Caller::New } else { known };
        let (mut node, far) = tokio::io::duplex(256 * 1024);
        let (core, trust) = (Arc::clone(&core), trust());
        let task = tokio::spawn(async move { converse(&core, &trust, far, ADDRESS, caller).await });
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
    assert!(joined >= 8_000, "only {joined} reached the registry");
    assert_eq!(core.connection_count(), 0);
}
