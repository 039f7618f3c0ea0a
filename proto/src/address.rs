//! What no dial may reach, whatever a policy says: the built-in refusals of both ends.
//!
//! An IPv6 address that carries an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo) is
//! judged by both, because the kernel or a gateway may deliver it to the inner one.
//!
//! Sources: RFC 6890 (special-purpose registries), RFC 3927 and RFC 4291 (link-local), RFC 6052
//! (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo); metadata addresses of the public clouds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address can never be a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 255.255.255.255 and the rest of 240.0.0.0/4.
    Broadcast,
    /// 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// 127.0.0.0/8, ::1. The one exception is the kubelet port; see the agent's policy.
    Loopback,
    /// Where clouds serve instance credentials.
    Metadata,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 0.0.0.0/8, ::.
    Unspecified,
}

impl Refusal {
    /// The words used in logs and reason phrases.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::Broadcast => "broadcast or reserved address",
            Refusal::LinkLocal => "link-local address",
            Refusal::Loopback => "loopback address",
            Refusal::Metadata => "cloud metadata address",
            Refusal::Multicast => "multicast address",
            Refusal::Unspecified => "unspecified address",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Metadata services outside the link-local range (those inside are refused with it).
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254),
    // Credentials of pods on EKS.
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd20, 0x0ce, 0, 0, 0, 0, 0, 0x254),
];

/// `None` when policy may decide; otherwise why no policy can.
pub fn refusal(ip: IpAddr) -> Option<Refusal> {
    match ip {
        IpAddr::V4(v4) => refusal_v4(v4),
        IpAddr::V6(v6) => refusal_v6(v6).or_else(|| carried(ip).find_map(refusal)),
    }
}

/// The IPv4 addresses that an IPv6 address carries: where a connection to it may end as well.
pub fn carried(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let carried = match ip {
        IpAddr::V4(_) => [None; 4],
        IpAddr::V6(ip) => embedded_v4(ip),
    };
    carried.into_iter().flatten().map(IpAddr::V4)
}

/// IPv4-mapped addresses as IPv4: the form in which two addresses are compared.
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn refusal_v4(ip: Ipv4Addr) -> Option<Refusal> {
    let octets = ip.octets();
    if octets[0] == 0 {
        Some(Refusal::Unspecified)
    } else if ip.is_loopback() {
        Some(Refusal::Loopback)
    } else if ip == Ipv4Addr::new(169, 254, 169, 254) || METADATA_V4.contains(&ip) {
        Some(Refusal::Metadata)
    } else if ip.is_link_local() {
        Some(Refusal::LinkLocal)
    } else if ip.is_multicast() {
        Some(Refusal::Multicast)
    } else if octets[0] >= 240 {
        Some(Refusal::Broadcast)
    } else {
        None
    }
}

fn refusal_v6(ip: Ipv6Addr) -> Option<Refusal> {
    let first = ip.segments()[0];
    if ip.is_unspecified() {
        Some(Refusal::Unspecified)
    } else if ip.is_loopback() {
        Some(Refusal::Loopback)
    } else if METADATA_V6.contains(&ip) {
        Some(Refusal::Metadata)
    } else if first & 0xffc0 == 0xfe80 || first & 0xffc0 == 0xfec0 {
        // fec0::/10 is the deprecated site-local range (RFC 3879): never a target either.
        Some(Refusal::LinkLocal)
    } else if ip.is_multicast() {
        Some(Refusal::Multicast)
    } else {
        None
    }
}

/// The IPv4 addresses that an IPv6 address may be delivered to.
fn embedded_v4(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let s = ip.segments();
    let pair = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        // ::a.b.c.d (compatible) and ::ffff:a.b.c.d (mapped), ::ffff:0:a.b.c.d (translated)
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            [Some(pair(high, low)), None, None, None]
        }
        // 64:ff9b:1::/48 is for local use, and a gateway may have taken any length of RFC 6052
        // section 2.2. A reading that begins with zero is that of another length.
        [0x64, 0xff9b, 1, third, fourth, fifth, high, low] => {
            let read = |high, low| Some(pair(high, low)).filter(|v4| v4.octets()[0] != 0);
            let joined = |left: u16, right: u16| (left << 8) | (right >> 8);
            [
                read(high, low),
                read(third, joined(fourth, fifth)),
                read((third << 8) | (fourth & 0xff), fifth),
                read(joined(fourth, fifth), joined(fifth, high)),
            ]
        }
        // 64:ff9b::/96
        [0x64, 0xff9b, _, _, _, _, high, low] => [Some(pair(high, low)), None, None, None],
        // 2002::/16 carries it in the next 32 bits
        [0x2002, high, low, ..] => [Some(pair(high, low)), None, None, None],
        // 2001::/32: server in clear, client inverted
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            let server = pair(server_high, server_low);
            [Some(server), Some(pair(!high, !low)), None, None]
        }
        _ => [None; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_rule_can_allow() {
        for (text, why) in [
            ("0.0.0.0", Refusal::Unspecified),
            ("0.1.2.3", Refusal::Unspecified),
            ("127.0.0.1", Refusal::Loopback),
            ("127.255.0.9", Refusal::Loopback),
            ("169.254.169.254", Refusal::Metadata),
            ("100.100.100.200", Refusal::Metadata),
            ("168.63.129.16", Refusal::Metadata),
            ("192.0.0.192", Refusal::Metadata),
            ("64:ff9b::c000:c0", Refusal::Metadata),
            ("169.254.0.1", Refusal::LinkLocal),
            ("224.0.0.1", Refusal::Multicast),
            ("255.255.255.255", Refusal::Broadcast),
            ("240.0.0.1", Refusal::Broadcast),
            ("::", Refusal::Unspecified),
            ("::1", Refusal::Loopback),
            ("fe80::1", Refusal::LinkLocal),
            ("fec0::1", Refusal::LinkLocal),
            ("ff02::1", Refusal::Multicast),
            ("fd00:ec2::254", Refusal::Metadata),
            ("fd00:ec2::23", Refusal::Metadata),
            ("fd00:c1::a9fe:a9fe", Refusal::Metadata),
            ("fd00:42::42", Refusal::Metadata),
            ("::ffff:127.0.0.1", Refusal::Loopback),
            ("::ffff:169.254.169.254", Refusal::Metadata),
            ("::127.0.0.1", Refusal::Loopback),
            ("::ffff:0:127.0.0.1", Refusal::Loopback),
            ("64:ff9b::7f00:1", Refusal::Loopback),
            ("64:ff9b:1::a9fe:a9fe", Refusal::Metadata),
            ("64:ff9b:1:a9fe:a9:fe00::", Refusal::Metadata),
            ("64:ff9b:1:12a9:fe:a9fe::", Refusal::Metadata),
            ("64:ff9b:1:1234:7f:0:100:0", Refusal::Loopback),
            ("2002:7f00:1::", Refusal::Loopback),
            ("2001:0:a9fe:a9fe::", Refusal::Metadata),
            ("2001:0:102:304:0:0:80ff:fffe", Refusal::Loopback),
        ] {
            assert_eq!(refusal(text.parse().unwrap()), Some(why), "{text}");
        }
    }

    #[test]
    fn ordinary_addresses_are_left_to_policy() {
        for text in [
            "10.0.0.7",
            "192.168.1.1",
            "172.16.0.1",
            "100.64.0.1",
            "8.8.8.8",
            "fd00::7",
            "2001:db8::1",
            "64:ff9b::a00:1",
            "64:ff9b:1::a00:1",
            "64:ff9b:1:a00:0:100::",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(refusal(text.parse().unwrap()), None, "{text}");
        }
    }
}
