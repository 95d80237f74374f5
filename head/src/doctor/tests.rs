use cid_protocol::doctor::Level;

use super::*;

fn config(text: &str) -> Config {
    Config::parse(Path::new("head.toml"), text).expect("a configuration")
}

#[test]
fn what_keeps_pcs_from_booting_is_a_failure_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().display();
    let config = config(&format!(
        "interface = \"no-such-if0\"\nimages_dir = \"{images}\"\n[groups.lab-a]\nimage = \"minimal\""
    ));
    let rival = DhcpStatus::Suspended {
        rival: "10.77.0.9".into(),
    };
    let findings = [
        link(&config, "10.77.0.1"),
        groups(&config, &BTreeMap::new()).remove(0),
        dhcp(&rival),
        space("state-space", Path::new("/does/not/exist")),
    ];
    for finding in findings {
        assert_eq!(finding.level, Level::Fail, "{finding:?}");
        assert!(!finding.remedy.is_empty(), "{finding:?}");
    }
}

#[test]
fn a_full_range_is_worth_a_look() {
    let config = config("interface = \"e0\"\n[dhcp]\nrange = \"10.77.0.100-10.77.0.109\"\n[groups.lab-a]");
    for (leases, level) in [(0, Level::Ok), (8, Level::Ok), (9, Level::Warn)] {
        assert_eq!(range(&config, leases).map(|finding| finding.level), Some(level));
    }
}

#[test]
fn a_folder_with_space_is_fine() {
    assert_ne!(space("state-space", Path::new("/")).level, Level::Fail);
    assert_ne!(clock(None).level, Level::Fail);
    assert_eq!(clock(Some(Duration::from_secs(60))).level, Level::Fail);
}
