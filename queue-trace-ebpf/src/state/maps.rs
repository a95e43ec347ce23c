//! The maps.

use aya_ebpf::{
    macros::map,
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf,
    },
};
use queue_trace_common::{
    queue::{self, Entered, Marked, Marks, MarksKey, Place, Queue, QueueKey},
    settings::{Address, Baseline, CountKey, Counted, Tally},
};

use super::types::{Entering, Frame, ListenerKey, Port, Sharing};

/// BPF_NOEXIST (include/uapi/linux/bpf.h): another CPU may have made it meanwhile.
pub const IF_MISSING: u64 = 1;

/// By whose address each CPU finds out how far its own copies are from those of the first; see
/// [`per_cpu_offset`](crate::read::memory::per_cpu_offset).
#[map]
pub static PER_CPU: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where programs find the one in which they go on: `hook::ALIKE`, and `packet_refused`.
#[map]
pub static SYN_REST: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
pub static REFUSED_REST: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
pub static RESET_REST: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
pub static COOKIE_REST: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Where softirqs mix: what each task remembers from the entry of a function to its return. The
/// loader makes both as large as that takes.
#[map]
pub static FRAMES: LruHashMap<u64, Frame> = LruHashMap::with_max_entries(1, 0);

/// and the connection that is entering an accept queue in each task.
#[map]
pub static ENTERING_BY_TASK: LruHashMap<u64, Entering> = LruHashMap::with_max_entries(1, 0);

/// Exact counts by listener and outcome, as far as they have no slot in `TALLIES`. All CPUs add to
/// the same: to make a table with a copy for each takes the kernel thousands of instructions an
/// entry, and what comes often has a slot.
#[map]
pub static COUNTS: HashMap<CountKey, Counted> = HashMap::with_max_entries(8192, 0);

/// Counts by port, of those that found no room in `COUNTS`.
#[map]
pub static UNLISTED: HashMap<CountKey, Counted> = HashMap::with_max_entries(4096, 0);

/// Counts by namespace, of those that found no room there either.
#[map]
pub static BY_NETNS: HashMap<CountKey, Counted> = HashMap::with_max_entries(1024, 0);

/// What each CPU has to tell, and what it remembers from the entry of a function to its return, by
/// its number. The loader makes it as long as there are CPUs.
#[map]
pub static TALLIES: Array<Tally> = Array::with_max_entries(1, BPF_F_MMAPABLE);

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Records.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// `--addr`.
#[map]
pub static ADDRS: LpmTrie<Address, u8> =
    LpmTrie::with_max_entries(1024, 1 /* BPF_F_NO_PREALLOC */);

/// `--client`.
#[map]
pub static CLIENTS: LpmTrie<Address, u8> = LpmTrie::with_max_entries(1024, 1);

/// The listener on which a thread is in accept(), for kprobes, whose exit does not
/// see the arguments.
#[map]
pub static ACCEPTING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// The backlog that each thread gave to listen() last.
#[map]
pub static ASKED: LruHashMap<u64, i32> = LruHashMap::with_max_entries(1024, 0);

/// What all CPUs share of a listener's queues.
#[map]
pub static QUEUES: HashMap<QueueKey, Queue> = HashMap::with_max_entries(queue::LISTENERS, 0);

/// What each CPU keeps of a listener's queues, by its number: at the place of the listener's address.
/// The loader makes it as long as there are CPUs.
#[map]
pub static MARKED: Array<Marked> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The same of those whose place another one has. The loader makes room for several CPUs. A table
/// with a copy for each CPU would have one for those as well that see nothing of a listener.
#[map]
pub static MARKS: HashMap<MarksKey, Marks> = HashMap::with_max_entries(queue::LISTENERS, 0);

/// The connections in accept queues, each at the place of its address,
#[map]
pub static PLACES: Array<Place> = Array::with_max_entries(1 << queue::PLACES_BITS, BPF_F_MMAPABLE);

/// and those whose place another one has, by the address of their `struct sock`.
#[map]
pub static WAITING: HashMap<u64, Entered> = HashMap::with_max_entries(queue::WAITING, 0);

/// The connection that is entering an accept queue on each CPU.
#[map]
pub static ENTERING: PerCpuArray<Entering> = PerCpuArray::with_max_entries(1, 0);

/// Ports whose listener was closed while attached.
#[map]
pub static LEFT: LruHashMap<Port, u8> = LruHashMap::with_max_entries(4096, 0);

/// Ports without a listener that are counted by themselves.
#[map]
pub static WITHOUT_LISTENER: HashMap<Port, u8> = HashMap::with_max_entries(1024, 0);

/// Tracepoint mode: each namespace's counters on this CPU when last looked at.
#[map]
pub static BASELINES: PerCpuHashMap<u64, Baseline> = PerCpuHashMap::with_max_entries(1024, 0);

/// Tracepoint mode: what the first program of each tracepoint saw last.
#[map]
pub static LATEST: PerCpuArray<u64> = PerCpuArray::with_max_entries(4, 0);

/// Tracepoint mode: listeners by namespace, port and address. Places of those that ended stay.
#[map]
pub static LISTENERS: LruHashMap<ListenerKey, Sharing> = LruHashMap::with_max_entries(16384, 0);

/// Tracepoint mode: where each socket that listens is in `LISTENERS`.
#[map]
pub static LISTENING: HashMap<u64, ListenerKey> = HashMap::with_max_entries(16384, 0);
