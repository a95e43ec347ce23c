//! The wire of the hand-made clients: a raw socket that sends whole IP packets,
//! and a packet socket that hears what `lo` carries back to them.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etherparse::TcpOptionElement;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::lab::{
    Family, loopback,
    raw::{
        FIRST_PEER_PORT, MARKER_HOST, peer_client,
        segment::{Flags, Segment},
        test_host,
    },
};

/// A handshake on `lo` is three packets, each queued while the one before is
/// received.
const HOPS: u32 = 3;
const MARKER_PATIENCE: Duration = Duration::from_secs(30);

/// Sends for any number of clients of one family, and hears for all of them.
#[derive(Debug)]
pub struct Wire {
    family: Family,
    sender: Sender,
    sniffer: Socket,
    /// Heard while waiting for something else.
    kept: Vec<Segment>,
    peers: u32,
    markers: u32,
}

impl Wire {
    /// Opens the wire in the calling thread's namespace, and routes the family's
    /// test range to its `lo`. Needs CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn open(family: Family) -> Result<Self> {
        loopback::route_test_range(family)?;
        Ok(Self {
            family,
            sender: Sender::open(family)?,
            sniffer: sniffer(family).context("cannot listen on lo (packet socket)")?,
            kept: Vec::new(),
            peers: 0,
            markers: 0,
        })
    }

    /// Sends one segment.
    pub fn send(&self, segment: &Segment, data: &[u8]) -> Result<()> {
        let mut packet = Vec::new();
        segment.write(&mut packet, data)?;
        self.sender.send(&packet, segment.destination.ip())
    }

    /// Sends one segment whose checksum is wrong.
    pub fn send_damaged(&self, segment: &Segment) -> Result<()> {
        // In the TCP header (RFC 9293).
        const CHECKSUM: usize = 16;
        let mut packet = Vec::new();
        segment.write(&mut packet, &[])?;
        let ip = match self.family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        packet[ip + CHECKSUM] ^= 0xff;
        self.sender.send(&packet, segment.destination.ip())
    }

    /// Sends one segment that carries a timestamp: the sender's own, and the one that it
    /// echoes.
    pub fn send_with_timestamp(&self, segment: &Segment, own: u32, echoed: u32) -> Result<()> {
        let mut packet = Vec::new();
        segment.write_with(
            &mut packet,
            &[TcpOptionElement::Timestamp(own, echoed)],
            &[],
        )?;
        self.sender.send(&packet, segment.destination.ip())
    }

    /// Sends an ICMP error about `quoted`, a segment that was sent from here, from the
    /// host that it was for: the kind that aborts a half-open request.
    pub fn send_unreachable(&self, quoted: &Segment) -> Result<()> {
        let mut packet = Vec::new();
        quoted.write_unreachable(&mut packet)?;
        self.sender.send(&packet, quoted.source.ip())
    }

    /// Puts a segment on `lo` as if the link had brought it to this very host,
    /// whatever its destination: a listener sees one that was sent to a multicast
    /// address only then. Multicast destinations are routed to `lo` for it.
    pub fn inject(&self, segment: &Segment) -> Result<()> {
        loopback::route_multicast(self.family)?;
        let mut packet = Vec::new();
        segment.write(&mut packet, &[])?;
        let to = loopback::link_address(self.family)?;
        let sent = self
            .sniffer
            .send_to(&packet, &to)
            .context("cannot put a packet on lo (packet socket)")?;
        ensure!(sent == packet.len(), "a packet was sent in part");
        Ok(())
    }

    /// The next segment from `from` to `to` that is `wanted`, if one has been heard
    /// already or is within `timeout`.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        wanted: impl Fn(Flags) -> bool,
        timeout: Duration,
    ) -> Result<Option<Segment>> {
        let matches = |s: &Segment| s.source == from && s.destination == to && wanted(s.flags);
        if let Some(index) = self.kept.iter().position(matches) {
            return Ok(Some(self.kept.remove(index)));
        }
        let deadline = Instant::now() + timeout;
        while let Some(segment) = self.hear(deadline)? {
            if matches(&segment) {
                return Ok(Some(segment));
            }
            self.kept.push(segment);
        }
        Ok(None)
    }

    /// Waits until the kernel has received everything that was sent on `lo` so far,
    /// and what it answered to that, and the answers to those.
    ///
    /// Packets on `lo` queue up behind each other on the CPU that sent them, so a
    /// marker sent on every CPU and heard again has passed all before it.
    pub fn settle(&mut self) -> Result<()> {
        let home = sched_getaffinity(None).context("cannot ask for the CPUs of this thread")?;
        let result = (0..HOPS).try_for_each(|_| self.pass_markers(&home));
        sched_setaffinity(None, &home).context("cannot go back to the CPUs of this thread")?;
        result
    }

    fn pass_markers(&mut self, cpus: &CpuSet) -> Result<()> {
        for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| cpus.is_set(cpu)) {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).with_context(|| format!("cannot run on CPU {cpu}"))?;
            let marker = self.next_marker();
            self.send(&marker, &[])?;
            let heard = |s: &Segment| *s == marker;
            let deadline = Instant::now() + MARKER_PATIENCE;
            loop {
                let segment = self.hear(deadline)?;
                let segment = segment.context("a packet sent on lo did not come back")?;
                if heard(&segment) {
                    break;
                }
                self.kept.push(segment);
            }
        }
        Ok(())
    }

    fn next_marker(&mut self) -> Segment {
        self.markers += 1;
        let host = SocketAddr::new(test_host(self.family, MARKER_HOST), FIRST_PEER_PORT);
        Segment {
            source: host,
            destination: host,
            sequence: self.markers,
            acknowledgment: 0,
            flags: Flags::RST,
        }
    }

    /// An address that no peer of this wire has had yet.
    pub(super) fn next_address(&mut self) -> SocketAddr {
        self.peers += 1;
        peer_client(self.family, self.peers - 1)
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    fn hear(&mut self, deadline: Instant) -> Result<Option<Segment>> {
        let mut packet = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.sniffer
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .context("SO_RCVTIMEO")?;
            match self.sniffer.read(&mut packet) {
                Ok(length) => {
                    if let Some(segment) = Segment::parse(&packet[..length]) {
                        return Ok(Some(segment));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot hear packets on lo"),
            }
        }
    }
}

/// A raw socket that takes whole IP packets.
#[derive(Debug)]
pub(super) struct Sender(Socket);

impl Sender {
    pub(super) fn open(family: Family) -> Result<Self> {
        // IPPROTO_RAW means, in both families, that the caller writes the IP header.
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(family.domain(), Type::RAW, Some(protocol))
            .context("cannot open a raw socket: it takes root or CAP_NET_RAW")?;
        socket.set_broadcast(true).context("SO_BROADCAST")?;
        Ok(Self(socket))
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.0
    }

    fn send(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        let sent = self
            .0
            .send_to(packet, &SocketAddr::new(to, 0).into())
            .with_context(|| format!("cannot send a raw packet to {to}"))?;
        ensure!(sent == packet.len(), "a raw packet was sent in part");
        Ok(())
    }
}

/// A packet socket for one protocol hears each packet of `lo` once, when it comes
/// in; a filter leaves out all that is not for a peer's port, floods above all.
fn sniffer(family: Family) -> io::Result<Socket> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // After an IP header without options, as all TCP of the kernel on lo has it.
    let (ether_type, destination_port) = match family {
        Family::V4 => (libc::ETH_P_IP, 20 + 2),
        Family::V6 => (libc::ETH_P_IPV6, 40 + 2),
    };
    let protocol = Protocol::from(i32::from((ether_type as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.attach_filter(&[
        SockFilter::new(LOAD_HALF, 0, 0, destination_port),
        SockFilter::new(JUMP_IF_AT_LEAST, 0, 1, u32::from(FIRST_PEER_PORT)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ])?;
    Ok(socket)
}
