//! Chooses the address that other devices of the household reach this computer at.

use std::net::{IpAddr, Ipv4Addr};

/// Interfaces of containers, virtual machines and tunnels: phones do not reach them.
const VIRTUAL_PREFIXES: [&str; 14] =
    ["docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "tun", "tap", "wg", "tailscale", "zt", "cni", "flannel", "lxc"];

/// An address of this computer and the interface it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// Interface name, as the system calls it.
    pub interface: String,
    /// Address.
    pub ip: IpAddr,
}

/// Every address of this computer but loopback ones; empty if the system does not tell.
pub fn local_addresses() -> Vec<LocalAddress> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        log::warn!("the network interfaces could not be listed: {error}");
        Vec::new()
    });
    interfaces.into_iter().filter(|i| !i.is_loopback()).map(|i| LocalAddress { ip: i.ip(), interface: i.name }).collect()
}

/// The address for the invitation: a private IPv4 address of an interface that looks physical, else the next best,
/// else loopback.
pub fn choose(addresses: &[LocalAddress]) -> IpAddr {
    let usable = addresses.iter().filter(|a| score(a) < 100);
    usable.min_by_key(|a| score(a)).map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |a| a.ip)
}

/// Lower is better; 100 and more is useless.
fn score(address: &LocalAddress) -> u32 {
    let name = address.interface.to_lowercase();
    let virtual_interface = VIRTUAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let base = match address.ip {
        IpAddr::V4(ip) if ip.is_link_local() || ip.is_loopback() => 100,
        IpAddr::V4(ip) if ip.octets()[0] == 192 && ip.is_private() => 0,
        IpAddr::V4(ip) if ip.is_private() => 1,
        IpAddr::V4(_) => 5,
        // A browser needs brackets and a scope for the others; households have IPv4.
        IpAddr::V6(_) => 100,
    };
    base + if virtual_interface { 10 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: &str, ip: &str) -> LocalAddress {
        LocalAddress { interface: interface.into(), ip: ip.parse().unwrap() }
    }

    #[test]
    fn the_wireless_address_is_preferred_to_a_bridge_of_containers() {
        let list = [address("docker0", "172.17.0.1"), address("br-1f", "192.168.99.1"), address("wlp2s0", "10.0.0.7"), address("eth0", "fe80::1")];
        assert_eq!(choose(&list), list[2].ip);
    }

    #[test]
    fn a_bridge_is_better_than_nothing_and_nothing_is_loopback() {
        assert_eq!(choose(&[address("docker0", "172.17.0.1")]).to_string(), "172.17.0.1");
        assert_eq!(choose(&[address("eth0", "169.254.3.1")]).to_string(), "127.0.0.1");
        assert_eq!(choose(&[]).to_string(), "127.0.0.1");
    }
}
