//! Same input, same bytes: whatever the folder, umask, time zone, number of cores or day.

mod common;

use std::process::Command;

use common::{cidbuild, digests, stand_ins, text};

#[test]
fn folder_umask_time_zone_and_cores_do_not_show() {
    let folder = tempfile::tempdir().unwrap();
    let programs = stand_ins(folder.path(), 200_000);
    let run = |out: &str, umask: &str, zone: &str, cores: &str| {
        let out = folder.path().join(out);
        let command = cidbuild(&["image", "minimal", "--quiet"]);
        let script = format!("umask {umask}; exec taskset -c {cores} \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .arg("--out")
            .arg(&out)
            .arg("--node-programs")
            .arg(&programs)
            .env("TZ", zone)
            .env("LC_ALL", if umask == "022" { "C" } else { "C.UTF-8" })
            .current_dir(command.get_current_dir().unwrap())
            .output()
            .expect("sh, taskset");
        assert!(output.status.success(), "{}", text(&output.stderr));
        digests(&out.join("minimal"))
    };
    let two_cores = if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        "0,1"
    } else {
        "0"
    };
    let one = run("here", "022", "UTC", "0");
    let other = run("somewhere/else", "077", "Pacific/Kiritimati", two_cores);
    assert!(
        one.contains("initrd.img") && one.contains("manifest.json") && one.contains("efi/shimx64.efi"),
        "{one}"
    );
    assert_eq!(one, other);
}
