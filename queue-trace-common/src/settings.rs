//! What user space decides before load, which the kernel side has in its instructions
//! ([`mark`]) or reads as read-only globals: which events are wanted, and what this kernel looks
//! like.
//!
//! The verifier knows these values, so a filter that is off and a branch for
//! another kernel cost nothing.
//!
//! Below them, the exact counts. Their tables are of a fixed size and the tracer runs for
//! months, so user space gives places back:
//!
//! - The kernel side counts under a listener's key (`sk` and `inode`, both not 0) while the
//!   socket has an inode. What comes after it lost it (late timers of its requests) is counted
//!   under the key of the port (`sk` and `inode` 0).
//! - A [`Queue`](crate::queue::Queue) with `closed_ns` and `released` was closed by close().
//!   Its key is not counted under again, once the programs that ran meanwhile have ended (a
//!   second is ample; `membarrier(MEMBARRIER_CMD_GLOBAL)` waits for just that). Then its
//!   counts are added to sums of user space's own and deleted.
//! - With `closed_ns` alone it was shut down, and may listen again: then `closed_ns` becomes 0.
//! - Keys of ports, and [`Baseline`]s, are deleted when their namespace is gone.
//! - A [`Slot`] is given back in two steps, with a second between them: `counted` is set to 0,
//!   then `key.netns`.
//! - A key that finds no room in `COUNTS` is counted by its port in `UNLISTED`, and where many
//!   ports have filled that by its namespace in `BY_NETNS` (`port` 0), so that the sums by
//!   namespace stay exact.

use bytemuck::{Pod, Zeroable};

use crate::{counter, hook, loss::Loss, outcome, reason};

/// Namespaces that `--netns` can name.
pub const MAX_NETNS: usize = 8;

/// Which packets and outcomes are wanted. Zero means "not filtered".
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct Filter {
    /// Outcome tags for which records are sent, a bit each. Counting is not
    /// affected.
    pub outcomes: u64,
    /// Connections are told as accepted only if they waited at least so long,
    /// nanoseconds; 0: all.
    pub slow_ns: u64,
    /// Namespace inode numbers, the first `netns_count` of them valid.
    pub netns: [u32; MAX_NETNS],
    /// How many namespaces are named.
    pub netns_count: u32,
    /// Nanoseconds that a record costs of its CPU's allowance, a second at most; 0: no limit.
    pub record_cost_ns: u32,
    /// The port that is wanted, if it is a single one; 0: see `ports`.
    pub only_port: u16,
    /// 1: only ports in the bitmap `PORTS`.
    pub ports: u8,
    /// 1: only packets to an address in the trie `ADDRS`.
    pub addrs: u8,
    /// 1: only clients in the trie `CLIENTS`.
    pub clients: u8,
    /// 1: SYNs for ports without a listener are of interest on every port, 0: only on those whose
    /// listener was closed while attached.
    pub unheard: u8,
    /// 1: the kernel side's own messages are wanted.
    pub debug: u8,
    /// Padding.
    pub _pad: u8,
}

/// The mark of the namespace in which a queue-trace tests itself: its `net.core.somaxconn` is one
/// of these numbers, which nobody needs. What happens in one is nobody's incident, so every other
/// queue-trace leaves it out, counts and records alike.
pub const SELF_TESTS: core::ops::Range<u32> = 0x7174_0000..0x7175_0000;

/// One bit a port: words of the bitmap `PORTS`.
pub const PORT_WORDS: usize = 65536 / 64;

/// The kernel's function that gives an address its type, as far as the verifier is concerned
/// (since Linux 6.2): then fields are loaded and need not be read by a helper.
pub const CAST: &str = "bpf_rdonly_cast";

/// The number of the helper that the kernel side calls in its place, of which there is none:
/// the loader puts the kernel's function there, whose number only the running kernel knows.
pub const CAST_MARK: i32 = 0x7175_6575;

/// What the kernel side's instructions have in place of what only the running kernel and the user
/// know: the loader puts it there. First, offsets to load from; no struct of the kernel side is so
/// large.
pub mod mark {
    /// and an index of [`field`](crate::field): the offset of that field.
    pub const FIELD: i16 = 0x6000;
    /// and an index of [`hook`](crate::hook): of what its function returned, behind its last
    /// argument.
    pub const RETURNED: i16 = 0x6100;
    /// and an index of [`counter`](crate::counter): of that counter among one CPU's. Behind
    /// [`COUNTERS`](crate::counter::COUNTERS) come [`SOLE`](crate::counter::SOLE).
    pub const COUNTER: i16 = 0x6200;

    /// Of an atomic addition: it is an exchange if the word is as expected, where kernels have that.
    pub const EXCHANGE: i16 = 0x6300;

    /// Numbers that a register is set to, of a member of [`Kernel`](super::Kernel): the size of the
    /// member and its place are in the lower bits.
    pub const KERNEL: i32 = 0x7e00_0000;
    /// The same of a member of [`Filter`](super::Filter).
    pub const FILTER: i32 = 0x7f00_0000;

    /// The mark of a member that has so many bytes, up to four, at an offset.
    #[must_use]
    pub const fn member(of: i32, size: usize, offset: usize) -> i32 {
        assert!(0 < size && size <= 4 && offset < 1 << 16);
        of | (size as i32) << 16 | offset as i32
    }

    /// What a number is the mark of: the struct, the size of the member and its offset.
    #[must_use]
    pub const fn member_of(mark: i32) -> Option<(i32, usize, usize)> {
        let (of, size) = (mark & 0x7f00_0000, mark >> 16 & 0xff);
        if (of == KERNEL || of == FILTER) && mark > 0 && 0 < size && size <= 4 {
            Some((of, size as usize, (mark & 0xffff) as usize))
        } else {
            None
        }
    }
}

macro_rules! typed {
    ($($konst:ident $name:literal $says:literal;)*) => {
        /// Structs to whose addresses the kernel side gives their type.
        pub const TYPED: [&str; typed::COUNT] = [$($name,)*];

        /// Places in [`TYPED`].
        pub mod typed {
            #[expect(clippy::upper_case_acronyms, reason = "only numbers the constants")]
            enum Index { $($konst,)* COUNT }
            /// How many there are.
            pub const COUNT: usize = Index::COUNT as usize;
            $(
                #[doc = $says]
                pub const $konst: usize = Index::$konst as usize;
            )*
        }
    };
}

typed! {
    COUNTERS "linux_mib" "One CPU's counters.";
    PACKET "sk_buff" "A packet.";
    ROUTE "dst_entry" "A route.";
    IPV4 "iphdr" "The header of IPv4.";
    IPV6 "ipv6hdr" "The header of IPv6.";
    TCP "tcphdr" "The header of TCP.";
    NAMESPACE "net" "A network namespace.";
    LISTENER "inet_connection_sock" "A listener, with its queues.";
    REQUEST "tcp_request_sock" "A half-open request of TCP.";
    SOCKET "socket_alloc" "A socket's `struct socket`, and the file system's inode around it.";
}

/// What differs between kernels and is not the place of a field.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct Kernel {
    /// The reasons for freeing a packet that are asked for, a bit for each of the kernel's numbers
    /// ([`Kernel::ask`]).
    pub asked: [u64; ASKED],
    /// Place of the first counter of each of [`counter::GROUPS`] in the kernel's
    /// array.
    pub counters: [u32; counter::GROUPS.len()],
    /// Place of each of [`counter::SOLE`] there.
    pub sole: [u32; counter::SOLE.len()],
    /// This kernel's number of each of [`reason::REASONS`]; 0: it has none.
    pub reasons: [u32; reason::COUNT],
    /// Which hooks would have been seen, a bit per [`hook`] index: those attached, and
    /// those of parts that this kernel lacks. Without its hook a cause cannot be told
    /// from `other`.
    pub attached: u32,
    /// The number of each of [`TYPED`] among the kernel's types; all 0 if addresses cannot be
    /// given their types.
    pub types: [u32; TYPED.len()],
    /// The one of [`SELF_TESTS`] that is our own.
    pub self_test: u32,
    /// For each hook (by [`hook`] index) the number of arguments of its function:
    /// the return value that an exit program sees sits after the last one.
    pub arity: [u8; hook::COUNT],
    /// 1: `inet_csk_reqsk_queue_hash_add` tells whether it added (bool), 0: void.
    pub hash_add_tells: u8,
    /// 1: the tracepoint `kfree_skb` carries the receiving socket.
    pub kfree_has_sk: u8,
    /// 1: softirqs of one CPU interrupt each other (PREEMPT_RT), so frames are kept by task.
    pub softirqs_mix: u8,
    /// 1: packets are seen right before a socket decides on them, 0: only where they end.
    pub delivered: u8,
    /// `TCP_ESTABLISHED`.
    pub tcp_established: u8,
    /// `TCP_SYN_RECV`.
    pub tcp_syn_recv: u8,
    /// `TCP_LISTEN`.
    pub tcp_listen: u8,
    /// Padding.
    pub _pad: [u8; (8 - UNPADDED % 8) % 8],
}

/// Bytes of a [`Kernel`] before its padding, apart from its whole words.
const UNPADDED: usize = 4 * (counter::GROUPS.len() + counter::SOLE.len() + reason::COUNT)
    + 4 * (TYPED.len() + 2)
    + hook::COUNT
    + 7;

/// Words of [`Kernel::asked`].
pub const ASKED: usize = reason::NUMBERS as usize / 64;

impl Kernel {
    /// Asks for those reasons alone whose outcomes are wanted.
    pub fn ask(&mut self, wanted: outcome::Set) {
        self.asked = [0; ASKED];
        for (number, reason) in self.reasons.iter_mut().zip(&reason::REASONS) {
            if reason::is_told(*number) && wanted >> reason.outcome & 1 != 0 {
                self.asked[*number as usize / 64] |= 1 << (*number % 64);
            } else {
                *number = 0;
            }
        }
    }
}

/// Key of the exact counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct CountKey {
    /// Address of the listener's `struct sock`; 0 where it could not be told.
    pub sk: u64,
    /// Its inode number, which tells it from an earlier socket at that address.
    pub inode: u64,
    /// What tells the network namespace from an earlier one of its number
    /// (`net->net_cookie`); 0 on kernels that do not have it.
    pub netns_cookie: u64,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Listening port, host order.
    pub port: u16,
    /// Outcome tag.
    pub outcome: u8,
    /// Counters that moved with it.
    pub moved: u8,
}

/// Value of the exact counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counted {
    /// How often, in all.
    pub seen: u64,
    /// Those among them of which a record was wanted and is not in the stream: held
    /// back by the rate limit, or the ring was full.
    pub held: u64,
}

impl Counted {
    /// Adds others.
    #[inline(always)]
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.held += other.held;
    }
}

/// A place for one key of the exact counts on one CPU, found without a search: a flood may
/// bring millions of packets a second. The first key that comes keeps it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// The counts. Before the key, as it is read in this order while it is written: a count
    /// that is not zero has a key that is whole.
    pub counted: Counted,
    /// Its key; of namespace 0 while nobody has it.
    pub key: CountKey,
    /// When the key's listener was looked at, for the kernel side alone.
    pub looked_at: u64,
}

/// How many slots a CPU has; a power of two.
pub const SLOTS: usize = 256;

/// What one CPU has to tell at any moment, in memory that user space maps: read without a
/// system call. One on a map keeps kprobes of its CPU from running meanwhile (`bpf_prog_active`,
/// kernel/bpf/syscall.c).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Tally {
    /// Exact counts of what comes in softirq, as far as they have a slot.
    pub slots: [Slot; SLOTS],
    /// What was lost.
    pub loss: Loss,
    /// How often something was counted in the map of counts.
    pub counted: u64,
    /// How often a listener was made or closed.
    pub listeners: u64,
    /// How often something found no place and went into a table of queues (`MARKS`, `WAITING`):
    /// while it is 0 these need not be searched.
    pub spilled: u64,
    /// How often an entry went into the table of queues that all CPUs share (`QUEUES`).
    pub queues: u64,
    /// Up to a whole line of the cache, so that no two CPUs write the same one.
    pub _pad: [u64; (LINE - WORDS % LINE) % LINE],
    /// What the kernel side remembers on this CPU: of no use to anybody else, and here as one
    /// place is found sooner than two.
    pub own: [[u64; LINE]; OWN],
}

/// Lines of the cache that the kernel side has for itself.
pub const OWN: usize = 10;

/// Words of a line of the cache.
const LINE: usize = 8;

/// Words of a [`Tally`] before its padding.
const WORDS: usize = (size_of::<[Slot; SLOTS]>() + size_of::<Loss>()) / 8 + 4;

const _: () = assert!(size_of::<Tally>().is_multiple_of(8 * LINE));

/// How far a CPU may get ahead of its allowance, nanoseconds: a burst of a second's
/// worth of records passes whole.
pub const RECORD_BURST_NS: u64 = 1_000_000_000;

/// Tracepoint mode: one namespace's counters on one CPU, when last looked at. The key is the
/// namespace's cookie, or on kernels without it the address of its `struct net`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Baseline {
    /// The namespace.
    pub net: u64,
    /// This CPU's counters of the namespace; 0 where another CPU made the entry.
    pub address: u64,
    /// Their values.
    pub values: [u64; counter::COUNT],
    /// Their values now, while a packet is looked at.
    pub now: [u64; counter::COUNT],
    /// The values of [`counter::SOLE`].
    pub sole: [u64; counter::SOLE.len()],
    /// Inode number of the namespace.
    pub netns: u32,
    /// The verdict, while the kernel side passes it through a map.
    pub verdict: u32,
}

/// Key of a prefix of the tries `ADDRS` and `CLIENTS`; IPv4 as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];

const _: () = assert!(size_of::<CountKey>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_has_its_bit() {
        let mut kernel = Kernel {
            reasons: [2; _],
            ..Kernel::default()
        };
        kernel.reasons[reason::POLICY] = 200;
        kernel.reasons[reason::CHECKSUM] = reason::NUMBERS;
        let wanted = [outcome::SYN_DROPPED_POLICY, outcome::SYN_DROPPED_CHECKSUM];
        kernel.ask(wanted.iter().fold(0, |set, tag| set | 1 << tag));
        let mut reasons = [0; _];
        reasons[reason::POLICY] = 200;
        assert_eq!(kernel.reasons, reasons);
        assert_eq!(kernel.asked, [0, 0, 0, 1 << (200 - 192)]);
    }
}
