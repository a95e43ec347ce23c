//! The headers of a packet that the kernel is handling: who sent it to whom. Low bytes come first,
//! as on every architecture this was built for.
//!
//! The offsets inside the headers are the protocols' own (RFC 791, 8200, 9293), not
//! the kernel's.

use core::{hint::black_box, mem::MaybeUninit};

use queue_trace_common::{
    field,
    settings::{Address, typed},
};

use super::memory::{self, HeaderSize, Plain, Pointer, Typed};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_ICMPV6: u8 = 58;

/// Addresses and ports of a packet from a client to us.
pub struct Packet {
    /// The address it was sent to.
    pub local: Address,
    /// The port it was sent to.
    pub local_port: u16,
    /// The client's address.
    pub client: Address,
    /// The client's port.
    pub client_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// Whether it is an ICMP error rather than TCP: then ports and flags say nothing.
    pub icmp: bool,
    /// Whether TCP has had the packet: it strips the headers before its own, and a
    /// packet that only passed by a packet socket keeps them.
    pub at_tcp: bool,
}

/// The other side of the connection.
pub struct Peer {
    /// The address that the client talks to.
    pub local: Address,
    /// The client's address.
    pub client: Address,
    /// The client's port.
    pub client_port: u16,
}

impl From<Packet> for Peer {
    #[inline(always)]
    fn from(packet: Packet) -> Self {
        Self {
            local: packet.local,
            client: packet.client,
            client_port: packet.client_port,
        }
    }
}

/// The bits of `sk_buff._skb_refdst` that are the route's address. The lowest one says that the
/// route is not counted (include/linux/skbuff.h).
pub const ROUTE: u64 = !1;

/// TCP flag bits.
pub mod flag {
    /// SYN.
    pub const SYN: u8 = 1 << 1;
    /// RST.
    pub const RST: u8 = 1 << 2;
    /// ACK.
    pub const ACK: u8 = 1 << 4;
}

/// An IPv4 address as IPv6 writes it: `::ffff:a.b.c.d`. By words, as the compiler would else call
/// a function that writes byte by byte.
#[inline(always)]
pub fn mapped(v4: u32) -> Address {
    // The low bytes come first, as on every architecture this was built for.
    const { assert!(cfg!(target_endian = "little")) };
    address([0, 0xffff_0000 | u64::from(v4) << 32])
}

/// The bytes of an address, as they are in memory.
#[inline(always)]
fn address(words: [u64; 2]) -> Address {
    // SAFETY: both are sixteen bytes of plain data.
    unsafe { core::mem::transmute::<[u64; 2], Address>(words) }
}

/// The same where they are.
#[inline(always)]
pub fn bytes(words: &mut [u64; 2]) -> &mut Address {
    // SAFETY: as above, and bytes may be anywhere.
    unsafe { &mut *words.as_mut_ptr().cast() }
}

impl Packet {
    /// Reads the headers of a TCP packet whose network and transport header the
    /// stack has found. The family is the packet's, not the socket's: an IPv6
    /// listener may be talking to an IPv4 client.
    #[inline(always)]
    pub fn of(skb: u64) -> Option<Self> {
        let mut packet = Self {
            local: [0; 16],
            local_port: 0,
            client: [0; 16],
            client_port: 0,
            flags: 0,
            at_tcp: false,
            icmp: false,
        };
        packet.read(skb).then_some(packet)
    }

    #[inline(always)]
    fn read(&mut self, skb: u64) -> bool {
        let Headers {
            data,
            network,
            transport,
            protocol,
        } = match Typed::cast::<{ typed::PACKET }>(skb) {
            Some(packet) => Headers::of(packet),
            None => Headers::of(Plain(skb)),
        };
        let carried;
        // Each header in one go, as every read is a call.
        let mut header = MaybeUninit::uninit();
        let header = memory::zeroed(&mut header);
        let addresses = match protocol {
            ETH_P_IP => {
                let status = memory::fetch_header(header, network, HeaderSize::V4);
                carried = (header[1] >> 8) as u8;
                self.client = mapped((header[1] >> 32) as u32);
                self.local = mapped(header[2] as u32);
                status
            }
            ETH_P_IPV6 => {
                let status = memory::fetch_header(header, network, HeaderSize::V6);
                // An extension header may come first; then it is taken for TCP.
                carried = (header[0] >> 48) as u8;
                self.client = address([header[1], header[2]]);
                self.local = address([header[3], header[4]]);
                status
            }
            _ => return false,
        };
        self.icmp = carried == IPPROTO_ICMP || carried == IPPROTO_ICMPV6;
        self.at_tcp = data == transport && !self.icmp;
        let ports = memory::fetch_header(header, transport, HeaderSize::Tcp);
        self.client_port = u16::from_be(header[0] as u16);
        self.local_port = u16::from_be((header[0] >> 16) as u16);
        self.flags = (header[1] >> 40) as u8;
        (addresses | ports).ok()
    }
}

/// Where the headers of a packet are.
struct Headers {
    /// What is left of it at this layer of the stack.
    data: u64,
    network: u64,
    transport: u64,
    /// Of the network header, host order.
    protocol: u16,
}

impl Headers {
    #[inline(always)]
    fn of(packet: impl Pointer) -> Self {
        let head: u64 = packet.load::<_, { field::SKB_HEAD }>();
        Self {
            data: packet.load::<_, { field::SKB_DATA }>(),
            network: head + u64::from(packet.load::<u16, { field::SKB_NETWORK }>()),
            transport: head + u64::from(packet.load::<u16, { field::SKB_TRANSPORT }>()),
            protocol: u16::from_be(packet.load::<u16, { field::SKB_PROTOCOL }>()),
        }
    }
}

/// A packet that is a SYN and nothing else, that was sent to this host and that TCP has, and the
/// namespace in which it was delivered: that of the device of its route, as the kernel itself finds
/// it where there is no socket.
#[inline(always)]
pub fn delivered_syn(skb: u64) -> Option<(Packet, Plain)> {
    // First, as much else comes here: what belongs to no connection any more.
    if !is_syn(skb) {
        return None;
    }
    let packet = Packet::of(skb)?;
    let route = memory::value::<u64>(skb, field::SKB_DST) & ROUTE;
    // One that is forwarded, or a raw socket's copy, has its headers still.
    if route == 0 || !packet.at_tcp {
        return None;
    }
    let net = Plain(route)
        .follow::<{ field::DST_DEV }>()
        .follow::<{ field::DEV_NET }>();
    Some((packet, net))
}

/// Whether a packet came to an address of this host, and not to all or to a group. Only that is
/// answered with a reset (`tcp_v4_send_reset`, net/ipv4/tcp_ipv4.c; `ipv6_unicast_destination`,
/// include/net/ip6_route.h).
#[inline(always)]
pub fn is_unicast(skb: u64) -> bool {
    // Both are part of the system call interface (linux/rtnetlink.h, linux/ipv6_route.h).
    const RTN_LOCAL: u16 = 2;
    const RTF_LOCAL: u32 = 0x8000_0000;
    let route = memory::value::<u64>(skb, field::SKB_DST) & ROUTE;
    match u16::from_be(memory::value(skb, field::SKB_PROTOCOL)) {
        ETH_P_IP => known_or(memory::get(route, field::ROUTE_TYPE), RTN_LOCAL) == RTN_LOCAL,
        _ => known_or(memory::get(route, field::ROUTE6_FLAGS), RTF_LOCAL) & RTF_LOCAL != 0,
    }
}

/// What is known, or what is taken for it. The compiler is not to see that it need not look at what
/// was not read: it would combine it with what follows all the same, which the verifier refuses.
#[inline(always)]
fn known_or<T>(known: Option<T>, instead: T) -> T {
    black_box(known.unwrap_or(instead))
}

/// Whether a packet whose transport header the stack has found is a SYN and nothing else.
#[inline(always)]
pub fn is_syn(skb: u64) -> bool {
    flags(skb) & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

/// The TCP flags of a packet whose transport header the stack has found.
#[inline(always)]
pub fn flags(skb: u64) -> u8 {
    let tcp = match Typed::cast::<{ typed::PACKET }>(skb) {
        Some(packet) => transport_of(packet),
        None => transport_of(Plain(skb)),
    };
    match Typed::cast::<{ typed::TCP }>(tcp) {
        // With the byte before it: to the kernel's types these are fields of some bits each.
        Some(header) => (header.at::<u16, 12>() >> 8) as u8,
        None => memory::read(tcp + 13).unwrap_or(0),
    }
}

#[inline(always)]
fn transport_of(packet: impl Pointer) -> u64 {
    let head: u64 = packet.load::<_, { field::SKB_HEAD }>();
    head + u64::from(packet.load::<u16, { field::SKB_TRANSPORT }>())
}

/// Whether a packet whose network header the stack has found is one of TCP. With IPv6 an extension
/// header may come first: then it is taken for TCP, as no other protocol is that asks.
#[inline(always)]
pub fn is_tcp(skb: u64) -> bool {
    match Typed::cast::<{ typed::PACKET }>(skb) {
        Some(packet) => carries_tcp(packet),
        None => carries_tcp(Plain(skb)),
    }
}

#[inline(always)]
fn carries_tcp(packet: impl Pointer) -> bool {
    const TCP: u8 = 6;
    // Where a header between the two may be (RFC 8200, 4302).
    const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];
    let head: u64 = packet.load::<_, { field::SKB_HEAD }>();
    let ip = head + u64::from(packet.load::<u16, { field::SKB_NETWORK }>());
    match u16::from_be(packet.load::<_, { field::SKB_PROTOCOL }>()) {
        ETH_P_IP => carried_by_v4(ip) == TCP,
        ETH_P_IPV6 => {
            let next = carried_by_v6(ip);
            next == TCP || EXTENSIONS.contains(&next)
        }
        _ => false,
    }
}

/// The protocol that a header of IPv4 says comes after it.
#[inline(always)]
fn carried_by_v4(header: u64) -> u8 {
    match Typed::cast::<{ typed::IPV4 }>(header) {
        Some(header) => header.load::<_, { field::IPV4_PROTOCOL }>(),
        None => Plain(header).load::<_, { field::IPV4_PROTOCOL }>(),
    }
}

/// The same of IPv6.
#[inline(always)]
fn carried_by_v6(header: u64) -> u8 {
    match Typed::cast::<{ typed::IPV6 }>(header) {
        Some(header) => header.load::<_, { field::IPV6_NEXT }>(),
        None => Plain(header).load::<_, { field::IPV6_NEXT }>(),
    }
}

/// Whether a packet is an ICMP error, where its data begins with the network header, as it
/// does when it is received. Headers between the two are not searched through.
#[inline(always)]
pub fn is_icmp_error(skb: u64) -> bool {
    match Typed::cast::<{ typed::PACKET }>(skb) {
        Some(packet) => begins_with_icmp_error(packet),
        None => begins_with_icmp_error(Plain(skb)),
    }
}

/// The same.
#[inline(always)]
pub fn begins_with_icmp_error(packet: impl Pointer) -> bool {
    let data: u64 = packet.load::<_, { field::SKB_DATA }>();
    match u16::from_be(packet.load::<_, { field::SKB_PROTOCOL }>()) {
        ETH_P_IP => carried_by_v4(data) == IPPROTO_ICMP && tells_error_v4(data),
        ETH_P_IPV6 => carried_by_v6(data) == IPPROTO_ICMPV6 && tells_error_v6(data),
        _ => false,
    }
}

/// Whether an ICMP message is of the kind that quotes the packet that it is about (RFC 792).
#[inline(never)]
fn tells_error_v4(ip: u64) -> bool {
    // The header's length in words.
    let Some(first) = memory::read::<u8>(ip) else {
        return false;
    };
    let kind: Option<u8> = memory::read(ip + 4 * u64::from(first & 0xf));
    matches!(kind, Some(3 | 4 | 5 | 11 | 12))
}

/// The same of ICMPv6 (RFC 4443).
#[inline(never)]
fn tells_error_v6(ip: u64) -> bool {
    const FIRST_INFORMATION: u8 = 128;
    memory::read::<u8>(ip + 40).is_some_and(|kind| kind < FIRST_INFORMATION)
}
