//! The record of one verdict, as it travels through the ring buffer.

use bytemuck::{Pod, Zeroable};

/// A record. Addresses are IPv6, IPv4 as `::ffff:a.b.c.d`; ports in host order.
/// A field whose bit in `present` is not set is unknown, not zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Record {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub mono_ns: u64,
    /// Address of the listener's `struct sock`: identity within one run only.
    pub sk: u64,
    /// Socket cookie of the listener ([`COOKIE`]).
    pub cookie: u64,
    /// Inode number of the listener ([`INODE`]).
    pub inode: u64,
    /// Address the listener is bound to ([`LISTENER`]).
    pub listener_addr: [u8; 16],
    /// Address the packet was sent to ([`PACKET`]).
    pub local_addr: [u8; 16],
    /// Address of the client ([`PACKET`]).
    pub client_addr: [u8; 16],
    /// Short name of the thread that accepted ([`ACCEPTED`]).
    pub comm: [u8; 16],
    /// Time in the accept queue, nanoseconds ([`WAITED`]).
    pub waited_ns: u64,
    /// The process that accepted ([`ACCEPTED`]).
    pub pid: u32,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// CPU that handled the packet.
    pub cpu: u32,
    /// Events that this record stands for.
    pub count: u32,
    /// Depth of the accept queue ([`QUEUES`]).
    pub accept_depth: u32,
    /// Limit of the accept queue, which is full when the depth is above it ([`QUEUES`]).
    pub accept_limit: u32,
    /// Depth of the SYN queue ([`QUEUES`]).
    pub syn_depth: u32,
    /// Requests of the SYN queue whose SYN-ACK was not retransmitted ([`QUEUES`]).
    pub syn_young: u32,
    /// `net.ipv4.tcp_syncookies` ([`SYSCTLS`]).
    pub syncookies: u32,
    /// `net.ipv4.tcp_abort_on_overflow` ([`SYSCTLS`]).
    pub abort_on_overflow: u32,
    /// `net.ipv4.tcp_max_syn_backlog` ([`SYSCTLS`]).
    pub max_syn_backlog: u32,
    /// `net.core.somaxconn` ([`SYSCTLS`]).
    pub somaxconn: u32,
    /// Which fields are known.
    pub present: u16,
    /// Port of the listener.
    pub port: u16,
    /// Port of the client ([`PACKET`]).
    pub client_port: u16,
    /// Outcome tag, see [`crate::outcome`].
    pub outcome: u8,
    /// Counters that moved with it, see [`crate::counter::Moved`].
    pub moved: u8,
    /// Layout version, [`VERSION`].
    pub version: u8,
    /// SYN-ACKs retransmitted so far, for the timer's outcomes.
    pub retransmits: u8,
    /// Padding.
    pub _pad: [u8; 2],
    /// The device that the listener is bound to; 0: none ([`LISTENER`]).
    pub device: u32,
}

/// Version of the record's layout.
pub const VERSION: u8 = 2;

/// `listener_addr` is known.
pub const LISTENER: u16 = 1 << 0;
/// `client_addr`, `client_port` and `local_addr` are known.
pub const PACKET: u16 = 1 << 1;
/// The queues' depths and limits are known.
pub const QUEUES: u16 = 1 << 2;
/// The sysctls are known.
pub const SYSCTLS: u16 = 1 << 3;
/// `cookie` is known.
pub const COOKIE: u16 = 1 << 4;
/// `inode` is known.
pub const INODE: u16 = 1 << 5;
/// `waited_ns` is known.
pub const WAITED: u16 = 1 << 6;
/// `pid` and `comm` are known.
pub const ACCEPTED: u16 = 1 << 7;

/// Bytes of a record.
pub const SIZE: usize = size_of::<Record>();
const _: () = assert!(SIZE == 168);
