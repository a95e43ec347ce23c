//! One TCP segment as bytes on the wire, and back.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement,
    TransportSlice, icmpv4, icmpv6,
};

const HOP_LIMIT: u8 = 64;
const WINDOW: u16 = 64_240;
const MSS: u16 = 1440;

/// The control flags that the laboratory uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Synchronize sequence numbers.
    pub syn: bool,
    /// The acknowledgment number counts.
    pub ack: bool,
    /// Reset the connection.
    pub rst: bool,
}

impl Flags {
    /// The first packet of a handshake.
    pub const SYN: Self = Self {
        syn: true,
        ack: false,
        rst: false,
    };
    pub(super) const SYN_ACK: Self = Self {
        syn: true,
        ack: true,
        rst: false,
    };
    pub(super) const ACK: Self = Self {
        syn: false,
        ack: true,
        rst: false,
    };
    pub(super) const RST: Self = Self {
        syn: false,
        ack: false,
        rst: true,
    };
}

/// A TCP segment, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgment number.
    pub acknowledgment: u32,
    /// Its control flags.
    pub flags: Flags,
}

impl Segment {
    /// Writes the IP packet that carries this segment and `data` over `packet`.
    pub(super) fn write(&self, packet: &mut Vec<u8>, data: &[u8]) -> Result<()> {
        let mss = [TcpOptionElement::MaximumSegmentSize(MSS)];
        self.write_with(packet, if self.flags.syn { &mss } else { &[] }, data)
    }

    /// The same with those TCP options.
    pub(super) fn write_with(
        &self,
        packet: &mut Vec<u8>,
        options: &[TcpOptionElement],
        data: &[u8],
    ) -> Result<()> {
        let ip = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT)
            }
            (from, to) => bail!("a segment from {from} to {to} mixes address families"),
        };
        let (from, to) = (self.source.port(), self.destination.port());
        let mut tcp = TcpHeader::new(from, to, self.sequence, WINDOW);
        tcp.acknowledgment_number = self.acknowledgment;
        tcp.syn = self.flags.syn;
        tcp.ack = self.flags.ack;
        tcp.rst = self.flags.rst;
        tcp.psh = !data.is_empty();
        tcp.set_options(options)
            .context("cannot write the TCP options")?;
        packet.clear();
        ip.tcp_header(tcp)
            .write_to_vec(packet, data)
            .context("cannot build a TCP packet")
    }

    /// Writes over `packet` the ICMP error by which the destination of this segment
    /// says that it cannot be reached: of the codes that end a half-open request.
    pub(super) fn write_unreachable(&self, packet: &mut Vec<u8>) -> Result<()> {
        let mut quoted = Vec::new();
        self.write(&mut quoted, &[])?;
        packet.clear();
        match (self.destination.ip(), self.source.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let code = icmpv4::DestUnreachableHeader::Host;
                PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT)
                    .icmpv4(Icmpv4Type::DestinationUnreachable(code))
                    .write_to_vec(packet, &quoted)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let code = icmpv6::DestUnreachableCode::Port;
                PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT)
                    .icmpv6(Icmpv6Type::DestinationUnreachable(code))
                    .write_to_vec(packet, &quoted)
            }
            (from, to) => bail!("a segment from {to} to {from} mixes address families"),
        }
        .context("cannot build an ICMP error")
    }

    /// Reads a segment from an IP packet; `None` if it is anything else.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ip(packet).ok()?;
        let (from, to): (IpAddr, IpAddr) = match packet.net? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Arp(_) => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            return None;
        };
        Some(Self {
            source: SocketAddr::new(from, tcp.source_port()),
            destination: SocketAddr::new(to, tcp.destination_port()),
            sequence: tcp.sequence_number(),
            acknowledgment: tcp.acknowledgment_number(),
            flags: Flags {
                syn: tcp.syn(),
                ack: tcp.ack(),
                rst: tcp.rst(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Family, peer_client},
        *,
    };

    #[test]
    fn a_written_segment_reads_back() {
        for family in Family::ALL {
            let segment = Segment {
                source: peer_client(family, 3),
                destination: SocketAddr::new(family.loopback(), 8080),
                sequence: 7,
                acknowledgment: 9,
                flags: Flags::SYN,
            };
            let mut packet = vec![1, 2, 3];
            segment.write(&mut packet, b"data").unwrap();
            assert_eq!(Segment::parse(&packet), Some(segment));
        }
    }

    #[test]
    fn an_error_quotes_its_segment_and_is_none_itself() {
        for (family, header) in [(Family::V4, 20 + 8), (Family::V6, 40 + 8)] {
            let segment = Segment {
                source: SocketAddr::new(family.loopback(), 8080),
                destination: peer_client(family, 3),
                sequence: 7,
                acknowledgment: 9,
                flags: Flags::SYN_ACK,
            };
            let mut packet = Vec::new();
            segment.write_unreachable(&mut packet).unwrap();
            assert_eq!(Segment::parse(&packet), None);
            assert_eq!(Segment::parse(&packet[header..]), Some(segment));
        }
    }

    #[test]
    fn other_packets_are_no_segments() {
        assert_eq!(Segment::parse(&[]), None);
        assert_eq!(Segment::parse(&[0x45; 19]), None);
        assert_eq!(Segment::parse(&[0xff; 60]), None);
    }
}
