use super::*;

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

fn discover() -> What {
    What::Discover {
        client: "pxe".into(),
        firmware: "uefi-x64".into(),
    }
}

fn offer() -> What {
    What::Offer {
        address: Some("10.77.0.128".into()),
        answer: "boot: group lab-a boots image minimal".into(),
        boot: true,
    }
}

#[test]
fn the_same_again_is_counted_and_so_is_an_offer_that_is_not_taken() {
    let mut timelines = Timelines::default();
    for round in 0..4 {
        assert_eq!(
            timelines.add(round * 10, Some(mac(1)), discover()).is_some(),
            round == 0
        );
        assert_eq!(
            timelines.add(round * 10 + 1, Some(mac(1)), offer()).is_some(),
            round == 0
        );
    }
    let steps = timelines.of(mac(1));
    assert_eq!(steps.len(), 2);
    assert_eq!(
        (steps[0].at_unix_ms, steps[0].last_unix_ms, steps[0].times),
        (0, 30, 4)
    );
    assert_eq!(
        (steps[1].at_unix_ms, steps[1].last_unix_ms, steps[1].times),
        (1, 31, 4)
    );
    timelines.add(40, Some(mac(1)), What::Ack { address: None });
    assert!(
        timelines.add(50, Some(mac(1)), discover()).is_some(),
        "a new boot"
    );
}

#[test]
fn everything_is_bounded() {
    let mut timelines = Timelines::default();
    for number in 0..1_000 {
        let name = format!("file-{number}-{}", "x".repeat(10_000));
        timelines.add(number, Some(mac(1)), What::File { name });
    }
    let steps = timelines.of(mac(1));
    assert_eq!(steps.len(), MAX_STEPS);
    assert!(
        steps
            .iter()
            .all(|step| matches!(&step.what, What::File { name } if name.len() <= MAX_TEXT))
    );
    for number in 0..MAX_MACHINES as u32 + 10 {
        let [a, b, c, d] = number.to_be_bytes();
        timelines.add(
            2_000 + u64::from(number),
            Some(Mac([2, 1, a, b, c, d])),
            discover(),
        );
    }
    assert_eq!(timelines.machines.len(), MAX_MACHINES);
    assert_eq!(timelines.of(mac(1)), [], "the quietest made room");
}

#[test]
fn what_concerns_all_stands_in_every_timeline_from_its_first_step_on() {
    let mut timelines = Timelines::default();
    let head = |text: &str| What::Head { text: text.into() };
    timelines.add(1, None, head("before"));
    timelines.add(5, Some(mac(1)), discover());
    timelines.add(6, None, head("after"));
    timelines.add(7, Some(mac(1)), offer());
    let kinds: Vec<u64> = timelines.of(mac(1)).iter().map(|step| step.at_unix_ms).collect();
    assert_eq!(kinds, [5, 6, 7]);
}

#[test]
fn steps_are_stable_json() {
    let step = Step {
        at_unix_ms: 5,
        last_unix_ms: 6,
        times: 2,
        what: What::Joined {
            name: "lab-a01".into(),
            again: false,
        },
    };
    let text =
        r#"{"at_unix_ms":5,"last_unix_ms":6,"times":2,"kind":"joined","name":"lab-a01","again":false}"#;
    assert_eq!(serde_json::to_string(&step).unwrap(), text);
    assert_eq!(serde_json::from_str::<Step>(text).unwrap(), step);
}
