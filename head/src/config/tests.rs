//! One `check` for what is wrong, one for what it means.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("head.toml"), text).map_err(|error| error.to_string())
}

fn check_error(text: &str, expected: &str) {
    assert_eq!(parse(text).map(|_| ()), Err(expected.to_owned()), "of {text}");
}

const FULL: &str = r#"
interface = "head0"
state_dir = "/s"
images_dir = "/i"
socket = "/run/x.sock"
time_zone = "Europe/Berlin"
unknown = "boot"
default_group = "lab-a"
[dhcp]
range = "10.77.0.100-10.77.0.250"
lease = "90m"
router = "10.77.0.1"
dns = ["10.77.0.1", "9.9.9.9"]
domain = "lab.example"
[groups.lab-a]
image = "pc"
kernel_args = "console=ttyS0,115200"
bail_out = "10m"
patience = "60s"
match = ["52:54:00:*", "10.77.0.9", "550e8400-e29b-41d4-a716-446655440000", "lab-*"]
hours = ["Mon-Fri 20:00-06:30", "Sat-Sun", "always"]
holidays = ["2026-10-03", "2026-12-24..2027-01-06"]
on_holiday = "closed"
wake_command = "/usr/local/sbin/power-on {name} {mac}"
at_close = "power-off"
way_home = "boot-next"
[groups.lab-a.requires]
cpu_speed = 0.75
memory = "3.5 GiB"
link = "2.5 Gbit/s"
round_trip = "1.5 ms"
loss = "0.25 %"
bandwidth = "50Mbit/s"
[groups.lab-a.values]
rack = "north \"1\""
slots = -4
"with gpu" = true
[groups.lab-b]
[groups.lab-b.requires]
link = "none"
round_trip = "none"
loss = "none"
[machines."52:54:00:00:00:01".values]
rack = "south"
[machines."52:54:00:00:00:02"]
quirk = "no-menu"
[machines."52:54:00:00:00:02".values]
slots = 8
"#;

#[test]
fn every_mistake_names_its_line_and_remedy() {
    check_error(
        "",
        "head.toml:1: the key `interface` is missing; it is the one key without a default",
    );
    check_error(
        "interface = \"e0\"\nimage_dir = \"/x\"",
        "head.toml:2: unknown key `image_dir`; the nearest known key here is `images_dir`",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nimage = \"m\"\nkernel_arg = \"x\"",
        "head.toml:4: unknown key `kernel_arg`; the nearest known key here is `kernel_args`",
    );
    check_error(
        "interface = \"e0\"\n[dhcp]\nlease = \"1 h\"",
        "head.toml:3: `1 h` is no duration; write 90s, 10m, 1h or 2d",
    );
    check_error(
        "interface = \"e0\"\n[dhcp]\nlease = \"1s\"",
        "head.toml:3: `1s` is out of bounds: 60s to 2592000s",
    );
    check_error(
        "interface = \"e0\"\n[dhcp]\nrange = \"10.0.0.9-10.0.0.1\"",
        "head.toml:3: `10.0.0.9-10.0.0.1` ends before it starts",
    );
    check_error(
        "interface = \"e0\"\ntime_zone = \"Europe/Bonn\"",
        "head.toml:2: `Europe/Bonn` is no time zone; write one like \"Europe/Berlin\" (`timedatectl list-timezones`)",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nhours = [\"Sat\",\n\"Mo-Fri\"]",
        "head.toml:4: `Mo` is no day; write Mon, Tue, Wed, Thu, Fri, Sat or Sun, as \"Mon-Fri\" or \"Mon,Wed\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nat_close = \"halt\"",
        "head.toml:3: `halt`: write \"reboot\" or \"power-off\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nway_home = \"bootnext\"",
        "head.toml:3: `bootnext`: write \"local-boot\" or \"boot-next\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nwake_command = \"/bin/on {host}\"",
        "head.toml:3: `{host}` is not filled in; there are {name}, {mac}, {address} and {group}",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nwake_command = \"/bin/on | tee\"",
        "head.toml:3: `|` has no meaning here: the command is run without a shell; put what needs one into a script",
    );
    check_error(
        "interface = \"e0\"\nunknown = \"boot\"",
        "head.toml:2: unknown = \"boot\" needs default_group: the group that strangers boot in",
    );
    check_error(
        "interface = \"e0\"\ndefault_group = \"x\"",
        "head.toml:2: there is no [groups.x] in this file",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nkernel_args = \"a\\nboot\"",
        "head.toml:3: kernel_args holds a control character or one outside ASCII",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nimage = \"../x\"",
        "head.toml:3: `../x` is no image name; it is a folder under images_dir, or `minimal@2` for one version of it",
    );
    check_error(
        "interface = \"e0\"\nstate_dir = \"x\"",
        "head.toml:2: `x` must be an absolute path",
    );
    check_error(
        "interface = \"a b\"",
        "head.toml:1: `a b` is no interface name; `ip -brief link` lists them",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nlink = \"100\"",
        "head.toml:3: `100` is not a rate; write \"100 Mbit/s\" or \"1 Gbit/s\", or \"none\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nlink = \"0 Mbit/s\"",
        "head.toml:3: `0 Mbit/s` is not a rate; write \"100 Mbit/s\" or \"1 Gbit/s\", or \"none\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nbandwidth = \"50 MB/s\"",
        "head.toml:3: `50 MB/s` is not a rate; write \"100 Mbit/s\" or \"1 Gbit/s\", or \"none\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nround_trip = \"5\"",
        "head.toml:3: `5` is not a time; write \"5 ms\" or \"500 us\", or \"none\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nloss = \"100 %\"",
        "head.toml:3: `100 %` is not a share below 100 %; write \"2 %\" or \"0.5 %\", or \"none\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nmemory = \"4 GB\"",
        "head.toml:3: `4 GB` is not a size; write \"4 GiB\" or \"512 MiB\", or \"none\"",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\ncpu_speed = -1",
        "head.toml:3: `cpu_speed` -1 is out of bounds: 0 to 1000, as `cidctl explain` shows it",
    );
    check_error(
        "interface = \"e0\"\n[groups.a.requires]\nround_trips = \"5ms\"",
        "head.toml:3: unknown key `round_trips`; the nearest known key here is `round_trip`",
    );
    check_error(
        "interface = \"e0\"\n[groups.a]\nmatch = [\"zz:*\"]",
        "head.toml:3: `zz:*` is no MAC glob, UUID, address or name",
    );
}

#[test]
fn the_printed_configuration_means_the_same() {
    for text in [FULL, "interface = \"e0\"", &STARTER.replace("@INTERFACE@", "e0")] {
        let config = parse(text).unwrap();
        assert_eq!(parse(&render(&config)).as_ref(), Ok(&config));
        let subnet = Subnet {
            address: Ipv4Addr::new(10, 77, 0, 1),
            prefix: 24,
        };
        let resolved = config.resolve(&subnet).unwrap();
        assert_eq!(parse(&render(&resolved)).as_ref(), Ok(&resolved));
    }
}

#[test]
fn defaults_and_patterns() {
    let config = parse(FULL).unwrap();
    assert_eq!(
        config.unknown,
        Unknown::Boot {
            group: "lab-a".into()
        }
    );
    assert_eq!(config.dhcp.lease, Duration::from_secs(5_400));
    let lab_a = &config.groups["lab-a"];
    assert_eq!(lab_a.matches[0], Pattern::Mac("52:54:00:*".into()));
    assert_eq!(lab_a.matches[1], Pattern::Address(Ipv4Addr::new(10, 77, 0, 9)));
    assert_eq!(
        lab_a.matches[2],
        Pattern::Uuid("550e8400-e29b-41d4-a716-446655440000".into())
    );
    assert_eq!(lab_a.matches[3], Pattern::Name("lab-*".into()));
    assert_eq!(config.groups["lab-b"].bail_out, Duration::from_secs(600));
    assert_eq!(config.groups["lab-b"].image, "minimal");
    let wanted = &lab_a.requires;
    assert_eq!(
        (wanted.cpu_speed_hundredths, wanted.memory_kib),
        (Some(75), Some(3_670_016))
    );
    assert_eq!(
        (wanted.link_kbit, wanted.bandwidth_kbit),
        (Some(2_500_000), Some(50_000))
    );
    assert_eq!(wanted.round_trip, Some(Duration::from_micros(1_500)));
    assert_eq!(wanted.loss_hundredths, Some(25));
    let nothing = &config.groups["lab-b"].requires;
    assert_eq!(
        (nothing.link_kbit, nothing.round_trip, nothing.loss_hundredths),
        (None, None, None)
    );
}

#[test]
fn the_default_range_is_the_upper_half_without_the_head() {
    let range = |address: [u8; 4], prefix| {
        default_range(&Subnet {
            address: address.into(),
            prefix,
        })
    };
    let pair = |low: [u8; 4], high: [u8; 4]| Some((low.into(), high.into()));
    assert_eq!(
        range([10, 77, 0, 1], 24),
        pair([10, 77, 0, 128], [10, 77, 0, 254])
    );
    assert_eq!(
        range([10, 77, 0, 254], 24),
        pair([10, 77, 0, 128], [10, 77, 0, 253])
    );
    assert_eq!(
        range([10, 77, 0, 129], 24),
        pair([10, 77, 0, 130], [10, 77, 0, 254])
    );
    assert_eq!(range([10, 77, 0, 1], 30), None);
    assert_eq!(
        range([192, 168, 1, 1], 28),
        pair([192, 168, 1, 8], [192, 168, 1, 14])
    );
    let outside = parse(FULL).unwrap().resolve(&Subnet {
        address: [10, 1, 0, 1].into(),
        prefix: 24,
    });
    assert!(
        outside
            .unwrap_err()
            .to_string()
            .contains("is not inside 10.1.0.0/24")
    );
}
