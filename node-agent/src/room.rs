//! For tests: a network namespace of their own, with the real ports and nobody else in it.

use std::process::Command;

/// Runs `test` again in a namespace, with `lo` up. `true`: we are in it, go on; `false`: it was run, and passed.
pub(crate) fn enter(test: &str) -> bool {
    if std::env::var_os("CID_TEST_ROOM").is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip runs").success());
        return true;
    }
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--nocapture"])
        .env("CID_TEST_ROOM", "1")
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && text.contains("1 passed"), "{text}");
    false
}
