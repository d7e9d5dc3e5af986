//! Containers attached without any daemon, for comparison and for tests of the lab itself.

use anyhow::Result;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::command::ip_batch;
use crate::lab::{Container, Host, Lab};
use crate::netns::{self, View};

impl Lab {
    /// Makes a namespace and joins it to a host by a veth pair and kernel routes alone.
    pub fn add_plain_container(&self, host: &str, name: &str, mtu: u32) -> Result<Container> {
        let host = self.host(host)?;
        let container = format!("{}{name}", host.name());
        let namespace = self.namespace(&container);
        netns::create(&namespace)?;
        let (v4, v6) = addresses(host);
        let (gateway4, gateway6) = (host.overlay_v4(), host.overlay_v6());
        ip_batch(
            host.view().namespace(),
            &[
                format!("link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}"),
                format!("addr add {gateway4}/32 dev {name}"),
                format!("addr add {gateway6}/128 dev {name} nodad"),
                format!("link set {name} up"),
                format!("route add {v4}/32 dev {name}"),
                format!("route add {v6}/128 dev {name}"),
            ],
        )?;
        ip_batch(
            &namespace,
            &[
                format!("addr add {v4}/32 dev eth0"),
                format!("addr add {v6}/128 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
                format!("route add default via {gateway4} dev eth0 onlink"),
                format!("route add ::/0 via {gateway6} dev eth0 onlink"),
            ],
        )?;
        netns::within(host.view().namespace(), || {
            netns::sysctl("net/ipv4/ip_forward", "1")?;
            netns::sysctl("net/ipv6/conf/all/forwarding", "1")
        })?;
        Ok(Container { name: container, view: View::of(&namespace), v4, v6 })
    }
}

fn addresses(host: &Host) -> (Ipv4Addr, Ipv6Addr) {
    let [a, b, c, _] = host.overlay_v4().octets();
    let mut six = host.overlay_v6().octets();
    six[15] = 9;
    (Ipv4Addr::new(a, b, c, 9), Ipv6Addr::from(six))
}
