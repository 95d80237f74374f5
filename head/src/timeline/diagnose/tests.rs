use super::*;

/// A timeline as people would tell it: seconds and a word each.
fn timeline(text: &str) -> Vec<Step> {
    let step = |line: &str| {
        let (second, rest) = line.trim().split_once(' ').unwrap();
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (owned, at) = (rest.to_owned(), second.parse::<u64>().unwrap() * 1_000);
        let discover = |client: &str| What::Discover {
            client: client.into(),
            firmware: owned.clone(),
        };
        let what = match word {
            "pxe" | "ipxe" | "http" => discover(word),
            "offer" => What::Offer {
                address: None,
                answer: owned.clone(),
                boot: owned.starts_with("boot"),
            },
            "ack" => What::Ack { address: None },
            "file" => What::File { name: owned },
            "script" => What::Script { image: owned },
            "joined" => What::Joined {
                name: owned,
                again: false,
            },
            "left" => What::Left { reason: owned },
            "lost" => What::State {
                state: NodeState::Lost,
                reason: owned,
            },
            "refused" => What::Refused { reason: owned },
            "rival" => What::Rival {
                server: owned,
                text: String::new(),
            },
            other => panic!("{other}"),
        };
        Step {
            at_unix_ms: at,
            last_unix_ms: at,
            times: 1,
            what,
        }
    };
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(step)
        .collect()
}

fn verdict_at(second: u64, text: &str) -> Diagnosis {
    let facts = Facts {
        now_unix_ms: second * 1_000,
        image: "minimal",
        ..Facts::default()
    };
    diagnose(&timeline(text), &facts)
}

#[test]
fn the_usual_failures_have_their_names() {
    for (second, text, verdict) in [
        (10, "", "never-asked"),
        (1_000, "1 rival 10.0.0.9", "never-asked"),
        (
            200,
            "1 pxe uefi-x64\n1 offer boot\n5 pxe uefi-x64\n5 offer boot",
            "offer-not-taken",
        ),
        (3, "1 pxe uefi-x64\n1 offer boot", "under-way"),
        (200, "1 pxe uefi-x64", "no-offer"),
        (
            200,
            "1 pxe bios\n1 offer local-disk: nobody adopted it\n2 ack",
            "sent-home",
        ),
        (200, "1 pxe uefi-x64\n1 offer boot\n2 ack", "nothing-fetched"),
        (
            200,
            "1 pxe uefi-x64\n1 offer boot\n2 ack\n3 file shimx64.efi",
            "loader-refused",
        ),
        (
            20,
            "1 pxe uefi-x64\n1 offer boot\n2 ack\n3 file shimx64.efi\n8 pxe uefi-x64\n8 offer boot\n9 ack\n10 file shimx64.efi",
            "loader-refused",
        ),
        (
            12,
            "1 pxe uefi-x64\n1 offer boot\n2 ack\n3 file shimx64.efi",
            "under-way",
        ),
        (
            200,
            "1 pxe uefi-x64\n2 offer boot\n2 ack\n3 file shimx64.efi\n4 file grubx64.efi\n5 script minimal",
            "loader-went-silent",
        ),
        (
            200,
            "1 ipxe bios\n2 offer boot\n2 ack\n3 script minimal\n4 file vmlinuz\n4 file initrd.img",
            "node-never-spoke",
        ),
        (
            60,
            "1 ipxe bios\n2 offer boot\n2 ack\n3 script minimal\n4 file vmlinuz\n4 file initrd.img",
            "under-way",
        ),
        (
            60,
            "1 ipxe bios\n2 ack\n4 file vmlinuz\n4 file initrd.img\n9 joined lab-a01",
            "up",
        ),
        (
            60,
            "1 ipxe bios\n2 ack\n4 file vmlinuz\n4 file initrd.img\n9 refused old image",
            "refused",
        ),
        (
            60,
            "1 ipxe bios\n2 ack\n4 file vmlinuz\n4 file initrd.img\n9 joined lab-a01\n20 left key pressed",
            "went-home",
        ),
        (
            60,
            "1 ipxe bios\n2 ack\n4 file vmlinuz\n4 file initrd.img\n9 joined lab-a01\n20 lost silent",
            "lost",
        ),
    ] {
        assert_eq!(verdict_at(second, text).verdict, verdict, "{text}");
    }
}

#[test]
fn a_rival_is_named() {
    let text = "1 rival 10.0.0.9\n2 pxe uefi-x64\n2 offer boot\n6 pxe uefi-x64\n6 offer boot";
    let diagnosis = verdict_at(200, text);
    assert_eq!(diagnosis.verdict, "offer-not-taken");
    assert!(diagnosis.text.contains("10.0.0.9"), "{}", diagnosis.text);
    let alone = verdict_at(200, "2 pxe uefi-x64\n2 offer boot\n6 pxe uefi-x64\n6 offer boot");
    assert!(alone.remedy.contains("DHCP snooping"), "{}", alone.remedy);
}

#[test]
fn the_card_without_a_driver_is_named() {
    let text = "1 ipxe bios\n2 offer boot\n2 ack\n3 script minimal\n4 file vmlinuz\n5 file initrd.img";
    let card = |id: &str, driver: &str| Card {
        id: id.into(),
        driver: driver.into(),
    };
    let drivers = ["e1000".to_owned(), "r8169".to_owned()];
    let ids = ["8086:100e".to_owned()];
    for (card, ids, expected) in [
        (card("8086:15f3", "igc"), &[][..], Some("8086:15f3 (driver igc)")),
        (card("8086:15f3", ""), &ids[..], Some("8086:15f3")),
        (card("8086:15f3", ""), &[][..], None),
        (card("8086:100e", ""), &ids[..], None),
        (card("8086:100e", "e1000"), &ids[..], None),
    ] {
        let facts = Facts {
            now_unix_ms: 300_000,
            cards: std::slice::from_ref(&card),
            image: "minimal",
            drivers: Some(&drivers),
            ids,
        };
        let diagnosis = diagnose(&timeline(text), &facts);
        match expected {
            Some(name) => {
                assert_eq!(diagnosis.verdict, "no-driver");
                assert!(
                    diagnosis
                        .text
                        .ends_with(&format!("no driver for its NIC {name} in image minimal"))
                );
            }
            None => assert_eq!(diagnosis.verdict, "node-never-spoke", "{card:?}"),
        }
    }
}

#[test]
fn a_boot_begins_where_firmware_asks() {
    let steps = timeline(
        "1 pxe bios\n1 offer boot\n2 pxe bios\n2 offer boot\n2 ack\n3 file undionly.kpxe\n5 ipxe bios\n5 offer boot\n\
         5 ack\n6 script minimal\n9 joined a\n20 left key\n60 ipxe bios",
    );
    let begin: Vec<usize> = (0..steps.len()).filter(|at| begins(&steps, *at)).collect();
    assert_eq!(begin, [0, 12]);
    assert_eq!(last_boot(&steps), 12);
}

/// Timelines of real boots in the lab (`lab/tests/trace.rs` made them); each file is named after its verdict.
#[test]
fn recorded_boots_get_their_verdicts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/timeline/recorded");
    let drivers = ["e1000e".to_owned()];
    let ids = ["8086:10d3".to_owned()];
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let trace: cid_protocol::trace::Trace = serde_json::from_str(&text).unwrap();
        let facts = Facts {
            now_unix_ms: trace.now_unix_ms,
            cards: &trace.cards,
            image: "one-nic",
            drivers: Some(&drivers),
            ids: &ids,
        };
        let found = diagnose(&trace.steps, &facts);
        let wanted = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(found.verdict, wanted, "{found:?}");
        assert_eq!(found.fault, trace.diagnosis.fault);
        // At every moment of that boot there is something to say.
        for length in 0..trace.steps.len() {
            assert!(!diagnose(&trace.steps[..length], &facts).text.is_empty());
        }
        count += 1;
    }
    assert!(count >= 6, "{count} recorded boots");
}
