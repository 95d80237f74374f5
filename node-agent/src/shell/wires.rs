//! Links: brought up, given to their DHCP clients, and the clients obeyed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;

use super::{Dhcp, Event, KERNEL_BOUND, Shell, Wire, seed};
use crate::dhcp::{self, Client};
use crate::links;
use crate::sockets::dhcp_socket;

impl Shell {
    /// Looks at all links: new ones are brought up, carriers are told to their clients and to the node.
    pub(super) async fn rescan(&mut self, now: Duration) {
        let found = self.ground.wired();
        self.wires
            .retain(|index, _| found.iter().any(|link| link.index == *index));
        if let (Some((address, prefix)), Some(link)) = (self.ground.fixed_address(), found.first()) {
            return self.stand(now, link.clone(), address, prefix);
        }
        for link in &found {
            if !self.wires.contains_key(&link.index)
                && let Err(error) = self.open_wire(link)
            {
                log!("cid-agent: {}: {error:#}", link.name);
            }
            if let Some(wire) = self.wires.get_mut(&link.index) {
                let carrier = link.carrier && wire.clean.load(Ordering::Acquire);
                if wire.carrier != carrier {
                    wire.carrier = carrier;
                    wire.client.handle_carrier(now, carrier);
                }
            }
        }
        self.node.handle_links(now, found);
    }

    /// The link is up and has its address: nobody is asked for one.
    fn stand(&mut self, now: Duration, link: crate::core::Link, address: Ipv4Addr, prefix: u8) {
        let index = link.index;
        let is_new = !self.wires.contains_key(&index);
        if is_new {
            let wire = Wire {
                name: link.name.clone(),
                mac: link.mac,
                carrier: true,
                address: Some(format!("{address}/{prefix}")),
                clean: Arc::new(AtomicBool::new(true)),
                client: Client::restore(link.mac, seed(), now, None),
                dhcp: None,
            };
            self.wires.insert(index, wire);
        }
        self.node.handle_links(now, vec![link]);
        if is_new {
            self.node.handle_address(now, index, Some(address));
        }
    }

    fn open_wire(&mut self, link: &crate::core::Link) -> anyhow::Result<()> {
        let client = Client::restore(link.mac, seed(), self.now(), self.keep.lease(link.mac));
        let holds = client.held().is_some();
        // On the side: some cards take seconds to come up, and the heartbeat must not wait for them.
        let (up_index, name, changed) = (link.index, link.name.clone(), self.sender.clone());
        // A lease of the agent before this one is in use.
        let clean = Arc::new(AtomicBool::new(holds));
        let cleaned = clean.clone();
        tokio::spawn(async move {
            if !holds {
                links::flush(up_index).await;
                // Only now may its client ask: a link that is up already would get its new address while the old are taken off.
                cleaned.store(true, Ordering::Release);
                // A full queue: links are looked at every second anyway.
                let _ = changed.try_send(Event::LinksChanged);
            }
            if let Err(error) = links::up(up_index).await {
                log!("cid-agent: {name}: {error:#}");
            }
        });
        let socket = Arc::new(dhcp_socket(&link.name).context("DHCP socket")?);
        let (index, sender, reading) = (link.index, self.sender.clone(), socket.clone());
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                match reading.recv(&mut buffer).await {
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                        // A full queue drops the datagram; the client asks again.
                        let _ = sender.try_send(Event::Dhcp { index, bytes });
                    }
                    // ENETDOWN and the like: the link is down for now.
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
        });
        let wire = Wire {
            name: link.name.clone(),
            mac: link.mac,
            carrier: false,
            address: None,
            clean,
            client,
            dhcp: Some(Dhcp {
                socket,
                reader: reader.abort_handle(),
            }),
        };
        self.wires.insert(link.index, wire);
        Ok(())
    }

    pub(super) async fn obey_dhcp(&mut self, index: u32, output: dhcp::Output) {
        let now = self.now();
        let Some(wire) = self.wires.get(&index) else {
            return;
        };
        match output {
            dhcp::Output::Transmit { to, bytes } => {
                if let Some(dhcp) = &wire.dhcp
                    && let Err(error) = dhcp.socket.send_to(&bytes, (to, 67)).await
                {
                    log!("cid-agent: {}: DHCP to {to}: {error}", wire.name);
                }
            }
            dhcp::Output::Configure(lease) => {
                self.keep.keep_lease(wire.mac, wire.client.held().as_ref());
                match self.configure(index, &lease).await {
                    Ok(()) => {
                        log!(
                            "cid-agent: {}: address {}/{} from {}",
                            wire.name,
                            lease.address,
                            lease.prefix,
                            lease.server
                        );
                        let address = format!("{}/{}", lease.address, lease.prefix);
                        if let Some(wire) = self.wires.get_mut(&index) {
                            wire.address = Some(address);
                        }
                        self.node.handle_address(now, index, Some(lease.address));
                    }
                    Err(error) => {
                        log!("cid-agent: {}: {error:#}", wire.name);
                        // The next look at the links asks for the address again.
                        if let Some(wire) = self.wires.get_mut(&index) {
                            wire.carrier = false;
                        }
                    }
                }
            }
            dhcp::Output::Deconfigure => {
                // First: an agent that comes between takes all addresses off.
                self.keep.keep_lease(wire.mac, None);
                let _ = timeout(KERNEL_BOUND, links::flush(index)).await;
                if let Some(wire) = self.wires.get_mut(&index) {
                    wire.address = None;
                }
                self.node.handle_address(now, index, None);
            }
        }
    }

    /// Bounded: the kernel makes this wait while another card comes up, and PID 1 listens for the heartbeat.
    async fn configure(&self, index: u32, lease: &dhcp::Lease) -> anyhow::Result<()> {
        timeout(KERNEL_BOUND, links::configure(index, lease))
            .await
            .context("the kernel is busy")?
    }
}
