//! What is kept in the kernel of each listener's queues while attached.

use bytemuck::{Pod, Zeroable};

/// Listeners that are kept.
pub const LISTENERS: u32 = 4096;

/// Connections in accept queues whose entry is remembered without a [`Place`], all listeners
/// together.
pub const WAITING: u32 = 65536;

/// Key: one listener.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct QueueKey {
    /// Address of the listener's `struct sock`.
    pub sk: u64,
    /// Its inode number, which tells it from an earlier socket at that address.
    pub inode: u64,
}

/// What all CPUs share of a listener. Times are of CLOCK_MONOTONIC, nanoseconds; 0: not
/// (yet).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Queue {
    /// The address that it is bound to.
    pub addr: [u8; 16],
    /// The short name of the thread that called listen().
    pub comm: [u8; 16],
    /// When it called listen(); 0: before we attached.
    pub made_ns: u64,
    /// When it was closed.
    pub closed_ns: u64,
    /// Since when its accept queue is full.
    pub full_since_ns: u64,
    /// How long its accept queue was full, before that.
    pub full_ns: u64,
    /// What `full_ns` was when the queue became full.
    pub full_before_ns: u64,
    /// How often its accept queue became full.
    pub full_times: u64,
    /// The cgroup of the thread that called listen().
    pub cgroup: u64,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The process that called listen().
    pub pid: u32,
    /// The backlog that listen() was given, if it was seen; else 0.
    pub asked: i32,
    /// Not 0: it was closed by close(), so it does not listen again. A listener that was shut
    /// down may.
    pub released: u16,
    /// The port.
    pub port: u16,
    /// Connections in the accept queue when it was closed.
    pub accept_depth: u32,
    /// The limit of the accept queue when it was closed.
    pub accept_limit: u32,
}

/// What each CPU keeps of a listener by itself, so that no two write the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Marks {
    /// When the accept queue was deepest first.
    pub accept_high_ns: u64,
    /// When the SYN queue was deepest first.
    pub syn_high_ns: u64,
    /// The longest time in the accept queue, nanoseconds.
    pub waited_max_ns: u64,
    /// All times in the accept queue added up, nanoseconds.
    pub waited_sum_ns: u64,
    /// The longest handshake, microseconds.
    pub handshake_max_us: u64,
    /// The deepest accept queue.
    pub accept_high: u32,
    /// The deepest SYN queue.
    pub syn_high: u32,
    /// Connections that entered the accept queue.
    pub entered: u64,
    /// Connections by the time that they were in the accept queue, see [`bucket`].
    pub waited: [u64; BUCKETS],
    /// Handshakes by the time that they took, see [`bucket`].
    pub handshakes: [u64; BUCKETS],
}

/// Places of a CPU for marks, each found by a listener's address without a search.
pub const MARKED: usize = 32;

/// The places of one CPU. What is at one that is free is zero.
pub type Marked = [MarkedPlace; MARKED];

/// A place for a listener's marks.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MarkedPlace {
    /// The listener. Its `sk` is 0 while the place is free, and has [`WRITING`] while it is taken.
    pub key: QueueKey,
    /// Its marks.
    pub marks: Marks,
}

/// Key of the table of marks that found no place.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct MarksKey {
    /// The listener.
    pub listener: QueueKey,
    /// The CPU, by its number.
    pub cpu: u32,
    /// Padding.
    pub _pad: u32,
}

/// CPUs for which the table of marks has room even if each sees [`LISTENERS`] listeners. Of more
/// CPUs fewer can: a table with room for all would take 160 MB for 64 of them.
pub const MARKING_CPUS: u32 = 8;

/// A connection in an accept queue.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Entered {
    /// When it entered.
    pub at_ns: u64,
    /// Whose queue it is.
    pub listener: QueueKey,
}

/// A place for a connection in an accept queue, found by its address without a search.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Address of its `struct sock`, with [`WRITING`] while the rest is written; 0 while the place
    /// is free.
    pub child: u64,
    /// When it entered, and whose queue.
    pub entered: Entered,
}

/// The bit of an address that says that a place is being written: no socket has such an address.
pub const WRITING: u64 = 1;

/// How many places there are: two to this power.
pub const PLACES_BITS: u32 = 12;

/// What an iterator tells of a listener that the kernel's socket diagnosis does not.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Depths {
    /// Address of its `struct sock`.
    pub sk: u64,
    /// Inode number.
    pub inode: u64,
    /// Depth of the SYN queue.
    pub syn_depth: u32,
    /// Requests of the SYN queue whose SYN-ACK was not sent again.
    pub syn_young: u32,
    /// Place in its `SO_REUSEPORT` group.
    pub index: u32,
    /// How many are in the group; 0: it is in none.
    pub size: u32,
}

/// A listening socket that a process holds, as an iterator finds it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Held {
    /// The socket.
    pub depths: Depths,
    /// Short name of the process.
    pub comm: [u8; 16],
    /// The process.
    pub pid: u32,
    /// Padding.
    pub _pad: u32,
}

/// Places of a histogram of times.
pub const BUCKETS: usize = 32;

/// The place of a time in microseconds, which is below 2^63: place 0 has 0, place n has what is
/// below 2^n and not below 2^(n-1); the last one all that is longer.
#[must_use]
#[inline(always)]
pub const fn bucket(us: u64) -> usize {
    // BPF has no instruction that counts leading zeros, and the verifier would follow both ways of
    // each branch of a search. So all bits below the highest are set, which leaves 64 numbers.
    let mut bits = us << 1 | 1;
    let mut step = 1;
    while step < 64 {
        bits |= bits >> step;
        step *= 2;
    }
    // The verifier does not know what is in the table.
    PLACE_OF[spread(bits)] as usize % BUCKETS
}

/// A different number below 64 for each of 1, 3, 7, 15 and so on: a de Bruijn sequence shows its
/// next six bits.
#[inline(always)]
const fn spread(bits: u64) -> usize {
    (bits.wrapping_mul(0x03f6_eaf2_cd27_1461) >> 58) as usize
}

/// The place of a time by what [`spread`] gives for its bits.
static PLACE_OF: [u8; 64] = {
    let mut places = [0; 64];
    let mut place = 0;
    while place < 64 {
        let bits = u64::MAX >> (63 - place);
        places[spread(bits)] = if place < BUCKETS { place } else { BUCKETS - 1 } as u8;
        place += 1;
    }
    places
};

const _: () = {
    let mut n = 1;
    while n < 63 {
        let place = if n < BUCKETS { n } else { BUCKETS - 1 };
        assert!(bucket((1 << n) - 1) == place);
        assert!(bucket(1 << (n - 1)) == place);
        n += 1;
    }
};
const _: () = assert!(bucket(0) == 0 && bucket(1) == 1 && bucket(2) == 2 && bucket(3) == 2);
const _: () = assert!(bucket(1023) == 10 && bucket(1024) == 11 && bucket(u64::MAX) == 31);
