//! The loopback device of the calling thread's network namespace: bringing it
//! up, and sending the test ranges' traffic back through it.
//!
//! The two ranges are set aside for documentation, so no host owns them. They
//! are routed to `lo` without being local: what a listener answers to such a
//! client passes `lo`, where a packet socket hears it, and ends there. No TCP
//! of this host answers it with a reset, so half-open requests stay half-open.

#![expect(
    unsafe_code,
    reason = "the ioctls that bring up an interface and add a route"
)]

use std::{
    ffi::CStr,
    fs, io,
    mem::zeroed,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::ioctl::{Opcode, Setter, ioctl};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::lab::Family;

/// Network of the made-up IPv4 clients, a /24.
pub(super) const TEST_RANGE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);
/// Many networks: the range for benchmarks, a /15 (RFC 2544).
pub(super) const WIDE_RANGE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Network of the made-up IPv6 clients, a /64.
pub(super) const TEST_RANGE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0);

const DEVICE: &CStr = c"lo";
const SET_FLAGS: Opcode = libc::SIOCSIFFLAGS as Opcode;
const SET_ADDRESS: Opcode = libc::SIOCSIFADDR as Opcode;
const ADD_ROUTE: Opcode = libc::SIOCADDRT as Opcode;
/// `RTF_ANYCAST` of linux/ipv6_route.h.
const RTF_ANYCAST: u32 = 0x0010_0000;

/// `struct in6_rtmsg` of linux/ipv6_route.h, whose fields the libc crate keeps to
/// itself.
#[repr(C)]
struct RouteV6 {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_length: u16,
    source_length: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    interface: libc::c_int,
}

/// `struct in6_ifreq` of linux/ipv6.h.
#[repr(C)]
struct AddressV6 {
    address: [u8; 16],
    prefix_length: u32,
    interface: libc::c_int,
}

/// Brings `lo` up, which also gives it its addresses 127.0.0.1 and ::1.
pub(super) fn bring_up() -> Result<()> {
    set_flags(libc::IFF_UP).context("cannot bring lo up (SIOCSIFFLAGS)")
}

/// Takes `lo` down: from now on the namespace delivers no packet.
pub(super) fn take_down() -> Result<()> {
    set_flags(0).context("cannot take lo down (SIOCSIFFLAGS)")
}

fn set_flags(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.to_bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    set::<SET_FLAGS, _>(Domain::IPV4, request)
}

/// Routes the family's test range to `lo`; doing so twice does no harm.
pub(super) fn route_test_range(family: Family) -> Result<()> {
    let result = match family {
        Family::V4 => route_v4(TEST_RANGE_V4, 24),
        Family::V6 => route_v6(TEST_RANGE_V6, 64),
    };
    routed(result, family)
}

/// Routes 512 networks to `lo`, the test range among them where it is IPv6.
pub(super) fn route_wide_range(family: Family) -> Result<()> {
    let result = match family {
        Family::V4 => route_v4(WIDE_RANGE_V4, 15),
        Family::V6 => route_v6(TEST_RANGE_V6, 48),
    };
    routed(result, family)
}

fn routed(result: io::Result<()>, family: Family) -> Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => {
            other.with_context(|| format!("cannot route the {family} test range to lo (SIOCADDRT)"))
        }
    }
}

fn route_v4(range: Ipv4Addr, length: u32) -> io::Result<()> {
    // SAFETY: rtentry is plain data, for which all zeroes is a value.
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = sockaddr(range);
    route.rt_genmask = sockaddr(Ipv4Addr::from(u32::MAX << (32 - length)));
    route.rt_flags = libc::RTF_UP;
    route.rt_dev = DEVICE.as_ptr().cast_mut();
    set::<ADD_ROUTE, _>(Domain::IPV4, route)
}

/// An ordinary IPv6 route to `lo` becomes an "unreachable" one, and a local one
/// would make the range ours. Flagged as anycast it is neither: packets go out
/// on `lo`, and coming back are up for forwarding, which is off.
fn route_v6(range: Ipv6Addr, length: u16) -> io::Result<()> {
    let route = RouteV6 {
        destination: range.octets(),
        source: [0; 16],
        gateway: [0; 16],
        kind: 0,
        destination_length: length,
        source_length: 0,
        metric: 1,
        info: 0,
        flags: u32::from(libc::RTF_UP) | RTF_ANYCAST,
        interface: loopback_index()?,
    };
    set::<ADD_ROUTE, _>(Domain::IPV6, route)
}

/// Routes what is sent to the family's multicast addresses to `lo`, so that it is
/// delivered here; IPv4 needs no route for that.
pub(super) fn route_multicast(family: Family) -> Result<()> {
    if family == Family::V4 {
        return Ok(());
    }
    let range = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);
    match route_v6(range, 8) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.context("cannot route multicast to lo (SIOCADDRT)"),
    }
}

/// Gives `lo` one more IPv6 address, in the calling thread's namespace.
pub fn add_address(address: Ipv6Addr) -> Result<()> {
    let add = || {
        let request = AddressV6 {
            address: address.octets(),
            prefix_length: 128,
            interface: loopback_index()?,
        };
        set::<SET_ADDRESS, _>(Domain::IPV6, request)
    };
    add().with_context(|| format!("cannot give lo the address {address} (SIOCSIFADDR)"))
}

/// The scope of link-local addresses on `lo`, in the calling thread's namespace.
pub fn scope() -> Result<u32> {
    Ok(loopback_index().context("cannot find lo")?.cast_unsigned())
}

/// The address, for a packet socket, of this very host on `lo`.
pub(super) fn link_address(family: Family) -> io::Result<SockAddr> {
    let protocol = match family {
        Family::V4 => libc::ETH_P_IP,
        Family::V6 => libc::ETH_P_IPV6,
    };
    let interface = loopback_index()?;
    // SAFETY: the storage is zeroed and has room and alignment for any address; the
    // length given is that of the sockaddr_ll written into it.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as libc::c_ushort;
            (*address).sll_protocol = (protocol as u16).to_be();
            (*address).sll_ifindex = interface;
            // That of lo is all zeroes.
            (*address).sll_halen = 6;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

fn loopback_index() -> io::Result<libc::c_int> {
    let index =
        rustix::net::netdevice::name_to_index(Socket::new(Domain::IPV4, Type::DGRAM, None)?, "lo")?;
    Ok(index.cast_signed())
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let address = SockAddr::from(SocketAddrV4::new(address, 0));
    // SAFETY: it was made from an IPv4 address, whose sockaddr_in has the size of
    // a sockaddr and lies in a storage at least as aligned.
    unsafe { *address.as_ptr().cast::<libc::sockaddr>() }
}

/// One "set" ioctl on a socket of `domain` in the calling thread's namespace.
fn set<const OPCODE: Opcode, T>(domain: Domain, request: T) -> io::Result<()> {
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    // SAFETY: the callers pair each opcode with the structure that the kernel
    // reads for it, and any pointer in it points to static data.
    unsafe { ioctl(&socket, Setter::<OPCODE, T>::new(request)) }?;
    Ok(())
}

/// Packets that `lo` has lost because a CPU's backlog was full, since the
/// namespace was made.
pub(super) fn lost_packets() -> Result<u64> {
    const DROPPED: usize = 3; // bytes, packets, errors, dropped
    let path = "/proc/thread-self/net/dev";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.trim_start().strip_prefix("lo:"))
        .and_then(|fields| fields.split_ascii_whitespace().nth(DROPPED))
        .and_then(|field| field.parse().ok())
        .with_context(|| format!("{path} does not show the packets dropped on lo"))
}

/// Packets that may wait for a CPU when more are sent: `net.core.netdev_max_backlog` is 1000.
const BEHIND: u32 = 400;

/// How long it waits for a CPU that is behind, at most: others may flood it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until no CPU is far behind with the packets that it received.
///
/// # Errors
/// If the kernel does not say how far they are.
pub fn wait_for_backlogs() -> Result<()> {
    let begun = Instant::now();
    while longest_backlog()? > BEHIND && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Packets that wait on the CPU where most do (net/core/net-procfs.c, `softnet_seq_show`).
/// Kernels before 5.10 do not say.
fn longest_backlog() -> Result<u32> {
    const WAITING: usize = 11;
    let path = "/proc/net/softnet_stat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let waiting = text.lines().filter_map(|cpu| {
        let field = cpu.split_ascii_whitespace().nth(WAITING)?;
        u32::from_str_radix(field, 16).ok()
    });
    Ok(waiting.max().unwrap_or(0))
}
