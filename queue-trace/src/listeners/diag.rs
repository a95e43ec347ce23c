//! What the kernel's socket diagnosis (`sock_diag(7)`, as `ss` asks it) tells of the
//! listeners of the calling thread's network namespace. Needs no privilege.

use std::{collections::HashSet, io, net::SocketAddr, time::Duration};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_SOCK_DIAG};

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    /// Socket cookie. Asking for it makes the kernel give it one.
    pub cookie: u64,
    /// Inode number; 0 if it belongs to no file.
    pub inode: u32,
    /// Depth of the accept queue.
    pub depth: u32,
    /// The backlog in force.
    pub limit: u32,
    /// The device that it is bound to; 0: none.
    pub device: u32,
    /// Whether it takes IPv6 only.
    pub only_v6: bool,
    /// The cgroup that it was made in, by number (from 5.9 on).
    pub cgroup: Option<u64>,
}

/// A handshake that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfOpen {
    /// The address that the client talks to.
    pub local: SocketAddr,
    /// Whether the SYN-ACK was not sent again.
    pub young: bool,
}

/// A connection that nobody has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The address that the client talks to.
    pub local: SocketAddr,
    /// How long it has been established.
    pub age: Duration,
}

/// Attribute `INET_DIAG_CGROUP_ID` (include/uapi/linux/inet_diag.h).
const CGROUP_ID: u16 = 21;

/// The listeners.
///
/// # Errors
/// If the kernel does not answer, which is where it lacks `tcp_diag`.
pub fn listening() -> io::Result<Vec<Listening>> {
    let mut all = Vec::new();
    dump(StateFlags::LISTEN, ExtensionFlags::empty(), 0, |socket| {
        all.push(Listening::of(&socket));
    })?;
    Ok(all)
}

/// Gives the handshakes that are not finished to `take`.
///
/// # Errors
/// As [`listening`].
pub fn half_open(mut take: impl FnMut(HalfOpen)) -> io::Result<()> {
    dump(StateFlags::SYN_RECV, ExtensionFlags::empty(), 0, |socket| {
        take(HalfOpen {
            local: local(&socket),
            young: matches!(socket.header.timer, Some(Timer::Retransmit(_, 0))),
        });
    })
}

/// Gives the connections on these ports that nobody has accepted to `take`: established, or
/// closed by the client already, and without a file. A connection that was closed on our
/// side is without one too, but in another state. All sockets are asked for once, however
/// many ports there are.
///
/// # Errors
/// As [`listening`].
pub fn waiting(ports: &HashSet<u16>, mut take: impl FnMut(Waiting)) -> io::Result<()> {
    let states = StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT;
    // The filter by port is a hint that kernels take or leave.
    let mut several = ports.iter();
    let port = match (several.next(), several.next()) {
        (Some(port), None) => *port,
        _ => 0,
    };
    dump(states, ExtensionFlags::INFO, port, |socket| {
        let port = socket.header.socket_id.source_port;
        if socket.header.inode != 0 || !ports.contains(&port) {
            return;
        }
        let info = socket.nlas.iter().find_map(|nla| match nla {
            Nla::TcpInfo(info) => Some(info),
            _ => None,
        });
        if let Some(age) = info.and_then(|info| idle_for(info)) {
            take(Waiting {
                local: local(&socket),
                age,
            });
        }
    })
}

/// How long ago a connection last sent data: `tcpi_last_data_sent` of `struct tcp_info`
/// (include/uapi/linux/tcp.h), milliseconds. One that nobody has accepted has sent none,
/// and then the kernel counts from when it was made (`tcp_create_openreq_child`).
fn idle_for(info: &[u8]) -> Option<Duration> {
    const LAST_DATA_SENT: usize = 44;
    let bytes = info.get(LAST_DATA_SENT..)?.first_chunk()?;
    Some(Duration::from_millis(u32::from_ne_bytes(*bytes).into()))
}

impl Listening {
    fn of(socket: &InetResponse) -> Self {
        let header = &socket.header;
        Self {
            address: local(socket),
            cookie: cookie(&header.socket_id),
            inode: header.inode,
            depth: header.recv_queue,
            limit: header.send_queue,
            device: header.socket_id.interface_id,
            only_v6: socket
                .nlas
                .iter()
                .any(|nla| matches!(nla, Nla::SkV6Only(true))),
            cgroup: socket.nlas.iter().find_map(|nla| match nla {
                Nla::Other(other) if other.kind() == CGROUP_ID => {
                    let mut value = [0; 8];
                    (other.value_len() == value.len()).then(|| {
                        other.emit_value(&mut value);
                        u64::from_ne_bytes(value)
                    })
                }
                _ => None,
            }),
        }
    }
}

fn local(socket: &InetResponse) -> SocketAddr {
    let id = &socket.header.socket_id;
    SocketAddr::new(id.source_address.to_canonical(), id.source_port)
}

/// Two halves, the lower first (`sock_diag_save_cookie`, net/core/sock_diag.c).
fn cookie(id: &SocketId) -> u64 {
    let half = |bytes: &[u8]| {
        bytes
            .first_chunk()
            .map_or(0, |bytes| u64::from(u32::from_ne_bytes(*bytes)))
    };
    half(&id.cookie[..4]) | half(&id.cookie[4..]) << 32
}

/// Asks for the sockets of both families in these states.
fn dump(
    states: StateFlags,
    extensions: ExtensionFlags,
    port: u16,
    mut take: impl FnMut(InetResponse),
) -> io::Result<()> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&Kernel::new(0, 0))?;
    let wanted = Wanted {
        states,
        extensions,
        port,
    };
    match ask(&socket, &of_both_families(&wanted), &mut take) {
        // A kernel that does not know it any more.
        Err(error) if is_unknown(&error) => of_each_family(&socket, &wanted, &mut take),
        asked => asked,
    }
}

/// Which sockets are wanted.
struct Wanted {
    states: StateFlags,
    extensions: ExtensionFlags,
    /// 0: of any port.
    port: u16,
}

fn of_each_family(
    socket: &Socket,
    wanted: &Wanted,
    take: &mut impl FnMut(InetResponse),
) -> io::Result<()> {
    for (family, any) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: wanted.extensions.clone(),
            states: wanted.states.clone(),
            socket_id: SocketId {
                source_port: wanted.port,
                ..any
            },
        };
        let message = SockDiagMessage::InetRequest(request);
        let mut message = NetlinkMessage::new(header(), message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // A v4 socket may be listed among v6 ones in some states.
        ask(socket, &bytes, &mut |found: InetResponse| {
            if found.header.family == family {
                take(found);
            }
        })?;
    }
    Ok(())
}

fn header() -> NetlinkHeader {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header
}

/// The older request, `TCPDIAG_GETSOCK` with a `struct inet_diag_req`
/// (include/uapi/linux/inet_diag.h), which is about both families at once. For each request the
/// kernel goes through the sockets of all namespaces, so one takes half the time of two.
const OLDER: u16 = 18;

/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h).
const BY_FAMILY: u16 = 20;

/// Where the type of a message is in its header (`struct nlmsghdr`).
const TYPE: std::ops::Range<usize> = 4..6;

fn of_both_families(wanted: &Wanted) -> Vec<u8> {
    let mut bytes = vec![0; OLDER_LENGTH];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &(OLDER_LENGTH as u32).to_ne_bytes());
    put(TYPE.start, &OLDER.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    put(HEADER + 3, &[wanted.extensions.bits()]);
    put(HEADER + 4, &wanted.port.to_be_bytes());
    // Of any interface and with any cookie (`INET_DIAG_NOCOOKIE`).
    put(HEADER + 44, &[0xff; 8]);
    put(HEADER + 52, &wanted.states.bits().to_ne_bytes());
    bytes
}

/// Length of a `struct nlmsghdr`, and of the request with it.
const HEADER: usize = 16;
const OLDER_LENGTH: usize = HEADER + 60;

/// Whether the kernel has no such request.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT)
    )
}

/// The kernel makes no longer datagram of an answer (`netlink_recvmsg`, net/netlink/af_netlink.c).
const LONGEST: usize = 32 << 10;

/// Sends a request, and takes the whole answer.
fn ask(socket: &Socket, request: &[u8], take: &mut impl FnMut(InetResponse)) -> io::Result<()> {
    socket.send(request, 0)?;
    let mut datagram = Vec::with_capacity(LONGEST);
    while receive(socket, &mut datagram, take)? {}
    Ok(())
}

/// Takes one datagram of the answer; whether there is more to come.
fn receive(
    socket: &Socket,
    datagram: &mut Vec<u8>,
    take: &mut impl FnMut(InetResponse),
) -> io::Result<bool> {
    datagram.clear();
    let length = socket.recv(datagram, libc::MSG_TRUNC)?;
    if length > datagram.len() {
        return Err(io::Error::other("a datagram of the kernel's is too long"));
    }
    let mut rest = &mut datagram[..];
    while rest.len() >= HEADER {
        // Both kinds of answers have the same form.
        if rest[TYPE] == OLDER.to_ne_bytes() {
            rest[TYPE].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        }
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => take(*found),
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        // Messages begin at multiples of four.
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get_mut(length.max(4)..).unwrap_or_default();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn one_request_tells_what_two_do() {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let v6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let ports = [&v4, &v6].map(|one| one.local_addr().unwrap().port());
        let _clients = ports.map(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        let socket = Socket::new(NETLINK_SOCK_DIAG).unwrap();
        socket.connect(&Kernel::new(0, 0)).unwrap();
        for states in [StateFlags::LISTEN, StateFlags::ESTABLISHED] {
            let wanted = Wanted {
                states,
                extensions: ExtensionFlags::INFO,
                port: 0,
            };
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            let own = |found: &InetResponse| ports.contains(&found.header.socket_id.source_port);
            ask(&socket, &of_both_families(&wanted), &mut |found| {
                once.push(found);
            })
            .unwrap();
            of_each_family(&socket, &wanted, &mut |found| twice.push(found)).unwrap();
            let told = |mut all: Vec<InetResponse>| {
                all.retain(own);
                let mut all: Vec<_> = all.iter().map(Listening::of).collect();
                all.sort_by_key(|one| one.cookie);
                all
            };
            let (once, twice) = (told(once), told(twice));
            assert_eq!(once, twice);
            assert_eq!(once.len(), 2);
        }
    }

    #[test]
    fn a_listener_and_who_waits_for_it_are_found() {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
            let all = listening().unwrap();
            let found = all.iter().find(|found| found.address == address).unwrap();
            assert_eq!((found.depth, found.cookie != 0), (3, true));
            let ports = HashSet::from([address.port()]);
            let how_many = || {
                let mut all = Vec::new();
                waiting(&ports, |one| all.push(one)).unwrap();
                assert!(all.iter().all(|one| one.local == address));
                all.len()
            };
            assert_eq!(how_many(), 3);
            let _accepted = listener.accept().unwrap();
            assert_eq!(how_many(), 2);
        }
    }
}
