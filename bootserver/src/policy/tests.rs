//! The policy as a table: a machine, what is known of it, what there is, and the answer.

use super::*;

fn facts(client: Client, platform: Platform) -> Facts {
    let mac = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    Facts {
        mac,
        uuid: None,
        client,
        platform,
        stage: Stage::Asking,
    }
}

fn ipxe() -> Facts {
    facts(Client::Ipxe, Platform::Bios)
}

fn uefi() -> Facts {
    facts(Client::PxeFirmware, Platform::UefiX64)
}

fn adopted() -> Standing {
    Standing {
        group: Some("lab-a".into()),
        name: Some("lab-a01".into()),
        hours: Hours::Open,
        ..Standing::default()
    }
}

fn site(fault: Option<ImageFault>) -> Site {
    let offer = GroupOffer {
        image: "minimal".into(),
        image_fault: fault,
        bios_loader: BiosLoader::Present,
        cmdline: "panic=10".into(),
    };
    Site {
        groups: BTreeMap::from([("lab-a".into(), offer)]),
        versions: BTreeMap::new(),
        templates_broken: None,
    }
}

/// The action and the reason's name in one word each.
fn check(facts: &Facts, standing: &Standing, site: &Site, expected: &str) {
    let decision = decide(facts, standing, site);
    let action = match &decision.action {
        Action::Boot(boot) => format!("boot {}", boot.loader.file()),
        Action::LocalDisk => "local-disk".to_owned(),
        Action::Restart => "restart".to_owned(),
        Action::NoBootAnswer => "no-boot-answer".to_owned(),
    };
    assert_eq!(
        format!("{action}: {}", decision.reason.name()),
        expected,
        "{facts:?} {standing:?}"
    );
    assert_eq!(decision, decide(facts, standing, site), "same facts, same answer");
    let text = decision.reason.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text}");
}

#[test]
fn who_boots_what() {
    let whole = site(None);
    for (facts, expected) in [
        (ipxe(), "boot boot.ipxe: in-group"),
        (uefi(), "boot shimx64.efi: in-group"),
        (
            facts(Client::Ipxe, Platform::UefiX64),
            "boot shimx64.efi: in-group",
        ),
        (
            facts(Client::PxeFirmware, Platform::Bios),
            "boot undionly.kpxe: in-group",
        ),
        (
            facts(Client::HttpFirmware, Platform::UefiX64Http),
            "boot shimx64.efi: in-group",
        ),
        (
            facts(Client::PxeFirmware, Platform::Other(11)),
            "local-disk: unsupported-architecture",
        ),
        (
            facts(Client::Ipxe, Platform::Other(6)),
            "local-disk: unsupported-architecture",
        ),
        (
            facts(Client::OperatingSystem, Platform::Bios),
            "no-boot-answer: not-firmware",
        ),
        (
            facts(Client::OperatingSystem, Platform::UefiX64),
            "no-boot-answer: not-firmware",
        ),
    ] {
        check(&facts, &adopted(), &whole, expected);
    }
}

#[test]
fn what_keeps_a_machine_at_home() {
    let whole = site(None);
    let held = |why: &str| Standing {
        hold: Some(why.into()),
        ..adopted()
    };
    let failed = |failed_boots| Standing {
        failed_boots,
        ..adopted()
    };
    for (standing, expected) in [
        (Standing::default(), "local-disk: not-adopted"),
        (held("released by the administrator"), "local-disk: released"),
        (failed(1), "boot shimx64.efi: in-group"),
        (failed(2), "local-disk: two-failed-boots"),
        (failed(u32::MAX), "local-disk: two-failed-boots"),
        (
            Standing {
                group: Some("gone".into()),
                ..adopted()
            },
            "local-disk: unknown-group",
        ),
    ] {
        check(&uefi(), &standing, &whole, expected);
    }
    // A person's word weighs more than an empty shelf: the reason named is the one to act on first.
    check(
        &uefi(),
        &held("key pressed"),
        &site(Some(ImageFault::Missing("x".into()))),
        "local-disk: released",
    );
}

#[test]
fn what_is_wrong_with_the_image_or_the_template() {
    for (fault, of_uefi, of_bios) in [
        (
            ImageFault::Missing("no manifest".into()),
            "local-disk: image-missing",
            "local-disk: image-missing",
        ),
        (
            ImageFault::Damaged("vmlinuz".into()),
            "local-disk: image-damaged",
            "local-disk: image-damaged",
        ),
        (
            ImageFault::NoUefiLoader,
            "local-disk: no-uefi-loader",
            "boot boot.ipxe: in-group",
        ),
        (
            ImageFault::BrokenChain("efi/mmx64.efi is missing".into()),
            "local-disk: broken-chain",
            "boot boot.ipxe: in-group",
        ),
    ] {
        check(&uefi(), &adopted(), &site(Some(fault.clone())), of_uefi);
        check(&ipxe(), &adopted(), &site(Some(fault)), of_bios);
    }
    let mut without = site(None);
    without
        .groups
        .values_mut()
        .for_each(|group| group.bios_loader = BiosLoader::Absent);
    let rom = facts(Client::PxeFirmware, Platform::Bios);
    check(&rom, &adopted(), &without, "local-disk: no-bios-loader");
    check(&ipxe(), &adopted(), &without, "boot boot.ipxe: in-group");
    let broken = Site {
        templates_broken: Some("template grub.cfg is broken".into()),
        ..site(None)
    };
    check(&uefi(), &adopted(), &broken, "local-disk: template-broken");
}

#[test]
fn a_quirk_goes_with_the_answer_and_can_change_what_the_machine_is() {
    let mut pi = facts(Client::PxeFirmware, Platform::Bios);
    pi.mac = MacAddress([0xdc, 0xa6, 0x32, 0, 0, 1]);
    check(
        &pi,
        &adopted(),
        &site(None),
        "local-disk: unsupported-architecture",
    );
    let forced = Standing {
        quirk: Some("pxe10".into()),
        ..adopted()
    };
    assert_eq!(decide(&uefi(), &forced, &site(None)).manner.forced, Some("pxe10"));
    assert_eq!(decide(&uefi(), &adopted(), &site(None)).manner.forced, None);
}

#[test]
fn outside_its_hours_a_machine_stays_at_home() {
    let closed = Standing {
        hours: Hours::Closed {
            opens: Some("Mon 2026-11-23 20:00".into()),
        },
        ..adopted()
    };
    let never = Standing {
        hours: Hours::Never,
        ..adopted()
    };
    for (facts, standing, expected) in [
        (uefi(), &closed, "local-disk: outside-hours"),
        (ipxe(), &closed, "local-disk: outside-hours"),
        (uefi(), &never, "local-disk: no-hours"),
    ] {
        check(&facts, standing, &site(None), expected);
    }
    let fetching = Facts {
        stage: Stage::Fetching,
        ..uefi()
    };
    check(&fetching, &closed, &site(None), "local-disk: outside-hours");
    let granted = Standing {
        boot_in_progress: true,
        ..closed
    };
    check(&fetching, &granted, &site(None), "boot shimx64.efi: in-group");
    check(&uefi(), &granted, &site(None), "local-disk: outside-hours");
}

/// Windows behind a loader of ours would be measured as what it is: another boot.
#[test]
fn a_machine_that_runs_our_loader_is_restarted() {
    let held = Standing {
        hold: Some("released".into()),
        loader_running: true,
        ..adopted()
    };
    check(&ipxe(), &held, &site(None), "restart: released");
    // Its ROM asks: that loader is gone.
    check(
        &facts(Client::PxeFirmware, Platform::Bios),
        &held,
        &site(None),
        "local-disk: released",
    );
    let held = Standing {
        loader_running: false,
        ..held
    };
    check(&ipxe(), &held, &site(None), "local-disk: released");
}

/// The offer of the third boot must not still be the second boot's: the head notices a new boot only behind the answer.
#[test]
fn a_boot_that_was_granted_goes_on_and_the_next_one_does_not_begin() {
    let second = Standing {
        failed_boots: 2,
        boot_in_progress: true,
        ..adopted()
    };
    let fetching = Facts {
        stage: Stage::Fetching,
        ..uefi()
    };
    check(&fetching, &second, &site(None), "boot shimx64.efi: in-group");
    check(&uefi(), &second, &site(None), "local-disk: two-failed-boots");
    // Files without a boot that was granted.
    let over = Standing {
        boot_in_progress: false,
        ..second
    };
    check(&fetching, &over, &site(None), "local-disk: two-failed-boots");
}

#[test]
fn reasons_name_the_remedy_and_what_they_are_about() {
    for (reason, words) in [
        (Reason::NotAdopted, "cidctl adopt"),
        (
            Reason::Held("released by the administrator".into()),
            "cidctl wake",
        ),
        (Reason::TwoFailedBoots, "cidctl wake"),
        (Reason::NoHours("lab-b".into()), "add `hours = ["),
        (Reason::UnknownGroup("lab-b".into()), "[groups.lab-b]"),
        (Reason::ImageMissing("image minimal".into()), "cidbuild image"),
        (Reason::ImageDamaged("image minimal".into()), "cidbuild image"),
        (Reason::UnsupportedArchitecture(Platform::Other(11)), "uefi-arm64"),
        (Reason::UnsupportedArchitecture(Platform::Other(39)), "loongarch"),
        (Reason::UnsupportedArchitecture(Platform::Other(99)), "99"),
    ] {
        assert!(reason.to_string().contains(words), "{reason}");
    }
}

/// A PC that an update has reached boots the new version while the others of its group boot the old one.
#[test]
fn a_machine_boots_the_version_that_it_was_given() {
    let mut site = site(None);
    let newer = GroupOffer {
        image: "minimal@2".into(),
        ..site.groups["lab-a"].clone()
    };
    let versions = BTreeMap::from([("minimal@2".to_owned(), newer)]);
    site.versions.insert("lab-a".into(), versions);
    let image_of = |image: Option<&str>| {
        let standing = Standing {
            image: image.map(str::to_owned),
            ..adopted()
        };
        match decide(&uefi(), &standing, &site).action {
            Action::Boot(boot) => boot.image,
            other => format!("{other:?}"),
        }
    };
    assert_eq!(image_of(None), "minimal");
    assert_eq!(image_of(Some("minimal")), "minimal");
    assert_eq!(image_of(Some("minimal@2")), "minimal@2");
    assert_eq!(
        image_of(Some("minimal@3")),
        "LocalDisk",
        "what is not there is no reason to boot another"
    );
}
