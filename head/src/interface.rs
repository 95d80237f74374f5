//! What the kernel says about the interface that faces the lab. Reads only; must never configure it.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::config::Subnet;

/// Facts of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Kernel's index.
    pub index: u32,
    /// MAC address; zero when it has none.
    pub mac: [u8; 6],
    /// First IPv4 address and its prefix.
    pub subnet: Subnet,
}

/// Why an interface cannot be served; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel would not list its interfaces.
    #[error("cannot list the network interfaces: {0}")]
    List(#[source] nix::Error),
    /// No such interface.
    #[error("there is no interface `{name}` here (there are: {others}); set `interface` in head.toml")]
    Missing {
        /// Name asked for.
        name: String,
        /// Names there are.
        others: String,
    },
    /// It has no IPv4 address.
    #[error("interface `{0}` has no IPv4 address; give it one, e.g. `ip address add 10.77.0.1/24 dev {0}`")]
    NoAddress(String),
    /// It is administratively down.
    #[error("interface `{0}` is down; `ip link set {0} up`")]
    Down(String),
}

/// Reads the facts of `name`.
///
/// # Errors
/// See [`InterfaceError`].
pub fn read(name: &str) -> Result<Interface, InterfaceError> {
    let mut names = Vec::new();
    let mut mac = [0; 6];
    let mut subnet = None;
    let mut up = false;
    for entry in getifaddrs().map_err(InterfaceError::List)? {
        if entry.interface_name != name {
            names.push(entry.interface_name);
            continue;
        }
        up |= entry.flags.contains(InterfaceFlags::IFF_UP);
        if let Some(link) = entry.address.as_ref().and_then(|address| address.as_link_addr()) {
            mac = link.addr().unwrap_or_default();
        }
        let address = entry
            .address
            .as_ref()
            .and_then(|address| address.as_sockaddr_in());
        let mask = entry.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in());
        if let (None, Some(address), Some(mask)) = (&subnet, address, mask) {
            let prefix = u32::from(mask.ip()).leading_ones();
            subnet = Some(Subnet {
                address: address.ip(),
                prefix: u8::try_from(prefix).unwrap_or(32),
            });
        }
    }
    let Ok(index) = nix::net::if_::if_nametoindex(name) else {
        names.dedup();
        names.sort();
        names.dedup();
        return Err(InterfaceError::Missing {
            name: name.to_owned(),
            others: names.join(", "),
        });
    };
    if !up {
        return Err(InterfaceError::Down(name.to_owned()));
    }
    let subnet = subnet.ok_or_else(|| InterfaceError::NoAddress(name.to_owned()))?;
    Ok(Interface {
        name: name.to_owned(),
        index,
        mac,
        subnet,
    })
}

/// Interfaces that could face a lab: with an IPv4 address, up, not the loopback.
///
/// # Errors
/// [`InterfaceError::List`].
pub fn candidates() -> Result<Vec<String>, InterfaceError> {
    let mut names = Vec::new();
    for entry in getifaddrs().map_err(InterfaceError::List)? {
        let usable = entry.flags.contains(InterfaceFlags::IFF_UP)
            && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let has_address = entry
            .address
            .as_ref()
            .is_some_and(|address| address.as_sockaddr_in().is_some());
        if usable && has_address && !names.contains(&entry.interface_name) {
            names.push(entry.interface_name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_there_and_a_stranger_is_not() {
        let error = read("no-such-if0").unwrap_err().to_string();
        assert!(error.contains("`no-such-if0`") && error.contains("lo"), "{error}");
        match read("lo") {
            Ok(interface) => assert_eq!(interface.subnet.prefix, 8),
            // A fresh network namespace has its loopback down.
            Err(error) => assert!(
                matches!(error, InterfaceError::Down(_) | InterfaceError::NoAddress(_)),
                "{error}"
            ),
        }
    }
}
