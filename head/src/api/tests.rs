//! Requests over the real socket: what each endpoint answers, and mutated requests by the ten thousand.

use std::collections::BTreeMap;

use cid_protocol::api::NodeState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::Config;
use crate::mutation::Random;
use crate::registry::Observation;
use crate::store::Store;

struct NoBoot;

impl BootView for NoBoot {
    fn explain(&self, mac: Mac) -> Explanation {
        Explanation {
            mac: mac.to_string(),
            action: "local-disk".into(),
            reason: "not-adopted".into(),
            text: String::new(),
            boot: None,
            judged: Vec::new(),
        }
    }

    fn dhcp(&self) -> DhcpStatus {
        DhcpStatus::Serving
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([("dhcp-malformed".to_owned(), 3)])
    }

    fn decisions(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([("local-disk/not-adopted".to_owned(), 2)])
    }

    fn leases(&self) -> usize {
        1
    }

    fn drivers(&self, _image: &str) -> Option<super::Drivers> {
        None
    }
}

/// A head that has seen three machines; its socket's path.
async fn head(folder: &Path) -> PathBuf {
    let text = "interface = \"e0\"\n[groups.lab-a]\nhours = [\"always\"]";
    let config = Config::parse(Path::new("head.toml"), text).unwrap();
    let (store, contents) = Store::open(folder).unwrap();
    let core = Core::start(store, crate::wake::Power::new(Vec::new()), |now| {
        Registry::new(&config, contents.machines, now)
    });
    for number in 1..=3 {
        let mac = Mac([0x52, 0x54, 0, 0, 0, number]);
        core.act(|registry, now| registry.handle_observation(now, mac, Observation::Heard))
            .1
            .done()
            .await
            .unwrap();
    }
    let path = folder.join("head.sock");
    let listener = listen(&path).await.unwrap();
    let api = Api {
        core,
        boot: Arc::new(NoBoot),
        interface: "e0".into(),
        address: "10.77.0.1".into(),
        config,
        library: None,
    };
    tokio::spawn(serve(Arc::new(api), listener));
    path
}

/// Sends raw bytes, returns the status (0 when the connection just closed) and the body.
async fn exchange(socket: &Path, request: &[u8]) -> (u16, String) {
    exchange_within(socket, request, 10_000).await
}

async fn exchange_within(socket: &Path, request: &[u8], patience_ms: u64) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The head may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    // A broken request may leave the head waiting for the rest of it; then the client goes away.
    if tokio::time::timeout(
        std::time::Duration::from_millis(patience_ms),
        stream.read_to_end(&mut answer),
    )
    .await
    .is_err()
    {
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut answer).await;
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    (
        status,
        text.split_once("\r\n\r\n")
            .map_or(String::new(), |(_, body)| body.to_owned()),
    )
}

fn get_request(uri: &str) -> Vec<u8> {
    format!("GET {uri} HTTP/1.1\r\nHost: head\r\nConnection: close\r\n\r\n").into_bytes()
}

fn post_request(uri: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {uri} HTTP/1.1\r\nHost: head\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

const ADOPT: &str = r#"{"machines":["seen"],"group":"lab-a","name":"lab-a[01-30]"}"#;

#[tokio::test]
async fn every_endpoint_answers_and_every_failure_is_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let socket = head(folder.path()).await;
    let (status, body) = exchange(&socket, &post_request("/v1/adopt", ADOPT)).await;
    let list: NodeList = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, list.nodes.len(), list.nodes[2].name.as_str()),
        (200, 3, "lab-a03")
    );
    let (_, body) = exchange(
        &socket,
        &get_request("/v1/nodes?nodeset=lab-a%5B01-02%5D%21lab-a01"),
    )
    .await;
    let list: NodeList = serde_json::from_str(&body).unwrap();
    assert_eq!((list.nodes.len(), list.nodes[0].state), (1, NodeState::Known));
    let (_, body) = exchange(&socket, &post_request("/v1/release", r#"{"nodeset":"@lab-a"}"#)).await;
    let list: NodeList = serde_json::from_str(&body).unwrap();
    assert!(list.nodes.iter().all(|node| node.state == NodeState::Home));
    assert_eq!(
        exchange(&socket, &post_request("/v1/wake", r#"{"nodeset":"lab-a01"}"#))
            .await
            .0,
        200
    );
    let open = r#"{"group":"lab-a","change":"closed","until":"23:00"}"#;
    let (_, body) = exchange(&socket, &post_request("/v1/hours", open)).await;
    let list: cid_protocol::api::HoursList = serde_json::from_str(&body).unwrap();
    let exception = list.groups[0].exception.as_ref().map(|exception| exception.open);
    assert_eq!((list.groups[0].open, exception), (false, Some(false)), "{body}");
    let clear = r#"{"group":"lab-a","change":"clear"}"#;
    exchange(&socket, &post_request("/v1/hours", clear)).await;
    let (_, body) = exchange(&socket, &get_request("/v1/hours?group=lab-a")).await;
    let list: cid_protocol::api::HoursList = serde_json::from_str(&body).unwrap();
    assert!(
        list.groups[0].open && list.groups[0].exception.is_none(),
        "{body}"
    );
    let (_, body) = exchange(&socket, &get_request("/v1/events?after=3&limit=2")).await;
    let list: EventList = serde_json::from_str(&body).unwrap();
    assert_eq!(
        list.events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [4, 5]
    );
    let (_, body) = exchange(&socket, &get_request("/v1/status")).await;
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status.interface.as_str(), status.drops["dhcp-malformed"]),
        ("e0", 3)
    );
    assert!(
        exchange(&socket, &get_request("/v1/explain/lab-a01"))
            .await
            .1
            .contains("52:54:00:00:00:01")
    );
    let (_, body) = exchange(&socket, &get_request("/metrics")).await;
    for line in [
        "cid_machines{state=\"home\"} 2",
        "cid_group_open{group=\"lab-a\"} 1",
        "cid_drops_total{reason=\"dhcp-malformed\"} 3",
        "cid_decisions_total{decision=\"local-disk/not-adopted\"} 2",
        "cid_leases 1",
        "cid_dhcp_serving 1",
    ] {
        assert!(body.contains(line), "no {line} in {body}");
    }

    for (request, expected) in [
        (get_request("/v1/nodes?nodeset=lab-a%5B"), 400),
        (get_request("/v1/nodes?nodeset=nobody"), 404),
        (get_request("/v1/nodes?nodset=x"), 400),
        (get_request("/v2/nodes"), 404),
        (get_request("/v1/adopt"), 405),
        (get_request("/v1/explain/zz"), 400),
        (get_request("/v1/explain/%ff"), 400),
        (
            post_request("/v1/release", r#"{"nodeset":"lab-a01","force":true}"#),
            422,
        ),
        (post_request("/v1/release", "{"), 400),
        (get_request("/v1/hours?group=lab-b"), 404),
        (
            post_request("/v1/hours", r#"{"group":"lab-a","change":"open"}"#),
            400,
        ),
        (
            post_request("/v1/hours", r#"{"group":"lab-a","change":"shut","until":"1:00"}"#),
            422,
        ),
        (post_request("/v1/adopt", ADOPT), 404),
        (post_request("/v1/adopt", &" ".repeat(MAX_BODY + 1)), 413),
    ] {
        let (status, body) = exchange(&socket, &request).await;
        let problem: Problem = serde_json::from_str(&body).unwrap_or_else(|error| {
            panic!(
                "{error}: {body} for {}",
                String::from_utf8_lossy(&request[..60.min(request.len())])
            )
        });
        assert_eq!(status, expected, "{problem:?}");
        assert!(
            !problem.error.is_empty() && !problem.error.contains('\n'),
            "{problem:?}"
        );
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_respected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let _listener = listen(&path).await.unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o660
    );
    assert!(matches!(listen(&path).await, Err(SocketError::InUse(_))));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(listen(&file).await, Err(SocketError::NoSocket(_))));
}

/// 20,000 mutated requests with the seed below. Each is counted by its status; a status of 0 is a connection that was
/// closed, and 500 would be a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_requests_never_panic_and_most_reach_the_registry() {
    const SEED: u64 = 80;
    let folder = tempfile::tempdir().unwrap();
    let socket = head(folder.path()).await;
    let mut random = Random::new(SEED);
    let valid = [
        "lab-a[01-20/2,25],@lab-a!lab-a03",
        "52:54:00:00:00:01",
        "seen",
        "lab-*&@lab-a^x1",
    ];
    let mut statuses: BTreeMap<u16, u32> = BTreeMap::new();
    let mut reached = 0;
    for _ in 0..20_000 {
        let mut text = valid[random.below(valid.len())].as_bytes().to_vec();
        random.mutate(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let percent: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let kind = random.below(40);
        // Some are broken anywhere, more in their JSON, most in what only our own decoders read.
        let request = match kind {
            0 => {
                let mut request = post_request("/v1/adopt", ADOPT);
                random.mutate(&mut request);
                request
            }
            1..=4 => {
                let mut body = ADOPT.as_bytes().to_vec();
                random.mutate(&mut body);
                post_request("/v1/adopt", &String::from_utf8_lossy(&body))
            }
            5..=12 => {
                let body = serde_json::json!({ "machines": [text], "group": "lab-a", "name": text });
                post_request("/v1/adopt", &body.to_string())
            }
            13..=16 => post_request("/v1/release", &serde_json::json!({ "nodeset": text }).to_string()),
            17..=20 => post_request("/v1/wake", &serde_json::json!({ "nodeset": text }).to_string()),
            21..=24 => get_request(&format!("/v1/explain/{percent}")),
            25 | 26 => get_request(&format!("/v1/events?after={percent}")),
            27 | 28 => {
                let body = serde_json::json!({ "group": "lab-a", "change": "open", "until": text });
                post_request("/v1/hours", &body.to_string())
            }
            _ => get_request(&format!("/v1/nodes?nodeset={percent}")),
        };
        // A request cut short leaves the head waiting for its rest: that client soon goes away.
        let (status, body) = exchange_within(&socket, &request, if kind == 0 { 20 } else { 10_000 }).await;
        *statuses.entry(status).or_default() += 1;
        let by_registry = [
            "is no time",
            "node set",
            "no machine",
            "neither a MAC",
            "free names",
            "no MAC address",
        ];
        reached += u32::from(status == 200 || by_registry.iter().any(|words| body.contains(words)));
    }
    println!("seed {SEED}: {statuses:?}, {reached} reached the registry");
    assert_eq!(statuses.values().sum::<u32>(), 20_000);
    assert!(!statuses.contains_key(&500), "{statuses:?}");
    assert!(reached >= 10_000, "only {reached} reached the registry");
    assert_eq!(exchange(&socket, &get_request("/v1/status")).await.0, 200);
}
