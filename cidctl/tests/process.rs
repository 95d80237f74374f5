//! The program as people and scripts meet it: exit codes, what goes where, a head that is away or talks nonsense.
//! The head is a few lines that answer one request with fixed bytes: what is tested is this side of the socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cid_protocol::api::{Event, EventList, NodeList, NodeRow, NodeState, Problem, WakeReport};

fn cidctl(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cidctl"));
    command
        .env("CID_SOCKET", socket)
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs against a head that answers every request with `status` and `body`; the request's first line comes back too.
fn ask(arguments: &[&str], status: &str, body: &str) -> (Output, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("head.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let head = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        let length = stream.read(&mut request).expect("a request");
        // A client that was ended by its reader may be gone.
        let _ = stream.write_all(answer.as_bytes());
        String::from_utf8_lossy(&request[..length])
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    let output = cidctl(&socket, arguments).output().expect("cidctl runs");
    (output, head.join().expect("the head ends"))
}

fn node(name: &str) -> NodeRow {
    NodeRow {
        name: name.into(),
        group: "lab-a".into(),
        state: NodeState::Up,
        reason: "joined".into(),
        since_unix: 0,
        deadline_unix: None,
        address: Some("10.77.0.128".into()),
        mac: "52:54:00:00:00:01".into(),
        uuid: None,
        product: None,
        firmware: None,
        cpus: 2,
        memory_kib: 512 * 1024,
        memory_peak_kib: None,
        load1: Some(0.5),
        clock_ahead_us: None,
        clock_error_us: None,
        image: Some("minimal".into()),
        door: Some("pxe-bios".into()),
        last_seen_unix: 0,
        connected: true,
        last_decision: None,
        hardware: None,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn data_goes_to_stdout_and_json_is_the_heads_own() {
    let list = NodeList {
        nodes: vec![node("lab-a01")],
    };
    let body = serde_json::to_string(&list).unwrap();
    let (output, request) = ask(&["nodes", "lab-a[01-02]"], "200 OK", &body);
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(request, "GET /v1/nodes?nodeset=lab-a%5B01-02%5D HTTP/1.1");
    let table = text(&output.stdout);
    assert!(
        table.starts_with("NAME     STATE  ADDRESS")
            && table.contains("lab-a01  up     10.77.0.128  2     512 MiB")
    );
    assert!(!table.contains('\x1b'), "colour without a terminal");
    let (output, _) = ask(&["nodes", "--json"], "200 OK", &body);
    assert_eq!(serde_json::from_slice::<NodeList>(&output.stdout).unwrap(), list);
}

#[test]
fn a_refusal_is_one_line_and_exit_code_1() {
    let problem = Problem {
        error: "there is no machine `x`".into(),
        remedy: "`cidctl nodes` lists them".into(),
    };
    let (output, _) = ask(
        &["release", "x"],
        "404 Not Found",
        &serde_json::to_string(&problem).unwrap(),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert_eq!(
        text(&output.stderr),
        "cidctl: there is no machine `x`; `cidctl nodes` lists them\n"
    );
    for (status, body) in [
        ("500 Internal Server Error", "<html>"),
        ("200 OK", "{}"),
        ("nonsense", ""),
    ] {
        let (output, _) = ask(&["nodes"], status, body);
        assert_eq!(output.status.code(), Some(1), "{status}");
        assert_eq!(
            text(&output.stderr).lines().count(),
            1,
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn usage_is_2_and_asks_nobody() {
    let nowhere = Path::new("/nonexistent/head.sock");
    for arguments in [
        &["adopt", "lab-a01", "--group", "a", "--name", "n1"][..],
        &["adopt", "52:54:00:00:00:0g", "--group", "a", "--name", "n1"],
        &["adopt", "seen", "--group", "a"],
        &["events", "-n", "0"],
        &["events", "--after", "-1"],
        &["fly"],
        &[],
    ] {
        let output = cidctl(nowhere, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    let help = cidctl(nowhere, &["adopt", "--help"]).output().unwrap();
    assert!(help.status.success() && text(&help.stdout).contains("Example"));
}

#[test]
fn an_unreachable_head_is_3_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [stale.as_path(), Path::new("/nonexistent/head.sock")] {
        let output = cidctl(socket, &["status"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let said = text(&output.stderr);
        assert!(
            said.contains("start it (`systemctl start cidhead`)") && said.lines().count() == 1,
            "{said}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let event = |seq| Event {
        seq,
        time_unix_ms: 0,
        mac: String::new(),
        name: String::new(),
        kind: "head".into(),
        text: "x".repeat(200),
    };
    let list = EventList {
        events: (1..1000).map(event).collect(),
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("head.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let body = serde_json::to_string(&list).unwrap();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let head = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let mut child = cidctl(&socket, &["events"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
    head.join().unwrap();
}

#[test]
fn waking_and_waiting_tells_who_came_and_fails_when_somebody_did_not() {
    let woken = |state| {
        let mut node = node("lab-a01");
        node.state = state;
        serde_json::to_string(&NodeList { nodes: vec![node] }).unwrap()
    };
    let arguments = ["wake", "lab-a01", "--wait", "--json"];
    let (output, request) = ask(&arguments, "200 OK", &woken(NodeState::Up));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(request, "POST /v1/wake HTTP/1.1");
    assert!(
        text(&output.stderr).contains("lab-a01 is up after 0 s"),
        "{output:?}"
    );
    let report: WakeReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.came.len(), report.missing.len()), (1, 0));
    // The head of this test answers once and is gone: PCs may come while it is restarted.
    let arguments = ["wake", "lab-a01", "--wait", "--timeout", "2s"];
    let (output, _) = ask(&arguments, "200 OK", &woken(NodeState::Known));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stdout),
        "0 of 1 came\nlab-a01 did not come: known: joined\n"
    );
    assert!(text(&output.stderr).contains("1 of 1 did not come"), "{output:?}");
}

#[test]
fn hours_are_asked_for_and_changed_and_half_a_sentence_is_a_usage_error() {
    let list = r#"{"now_unix":1,"groups":[]}"#;
    let (output, request) = ask(&["hours", "lab-a"], "200 OK", list);
    assert!(output.status.success());
    assert_eq!(request, "GET /v1/hours?group=lab-a HTTP/1.1");
    let (output, request) = ask(&["hours", "lab-a", "open", "until", "23:00"], "200 OK", list);
    assert!(output.status.success());
    assert_eq!(request, "POST /v1/hours HTTP/1.1");
    for (words, expected) in [
        (&["hours", "lab-a", "open"][..], "until when?"),
        (&["hours", "lab-a", "clear", "until", "3:00"], "takes no time"),
    ] {
        let output = cidctl(Path::new("/nowhere"), words)
            .output()
            .expect("cidctl runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains(expected) && told.contains("Usage: cidctl hours"),
            "{told}"
        );
    }
}
