//! The one table of kernel struct fields that are read, each by its BTF path.
//!
//! rustc emits no CO-RE relocations for BPF, so user space resolves every path
//! against the running kernel's BTF and passes the offsets down as a read-only
//! global before load. A path names a struct and its members; anonymous members
//! are searched through, pointers are not followed.

use bytemuck::{Pod, Zeroable};

/// Where a field is in its struct. `size` 0: this kernel does not have it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Field {
    /// Bytes from the start of the struct.
    pub offset: u16,
    /// Bytes; for a bit-field the bytes that hold it.
    pub size: u16,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// `struct.member.member`, as in the kernel's BTF.
    pub path: &'static str,
    /// What is lost without it; `None`: nothing works without it.
    pub without: Option<&'static str>,
}

macro_rules! fields {
    ($($konst:ident $path:literal $(without $without:literal)?;)*) => {
        /// Every field, at its index.
        pub static FIELDS: [Wanted; COUNT] = [
            $(Wanted { path: $path, without: fields!(@ $($without)?) },)*
        ];
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the constants")]
        enum Index { $($konst,)* COUNT }
        /// How many fields there are.
        pub const COUNT: usize = Index::COUNT as usize;
        $(
            #[doc = concat!("Index of `", $path, "`.")]
            pub const $konst: usize = Index::$konst as usize;
        )*
    };
    (@) => { None };
    (@ $without:literal) => { Some($without) };
}

/// Whether every kernel has a field, or nothing works.
#[must_use]
pub const fn is_in_all(index: usize) -> bool {
    FIELDS[index].without.is_none()
}

fields! {
    SK_NET           "sock.__sk_common.skc_net.net";
    SK_FAMILY        "sock.__sk_common.skc_family";
    SK_STATE         "sock.__sk_common.skc_state";
    SK_PORT          "sock.__sk_common.skc_num";
    SK_BOUND_PORT    "inet_sock.inet_sport";
    SK_PEER_PORT     "sock.__sk_common.skc_dport";
    SK_DEVICE        "sock.__sk_common.skc_bound_dev_if" without "the listener's device";
    SK_ADDR4         "sock.__sk_common.skc_rcv_saddr";
    SK_PEER_ADDR4    "sock.__sk_common.skc_daddr";
    SK_ADDR6         "sock.__sk_common.skc_v6_rcv_saddr" without "IPv6";
    SK_PEER_ADDR6    "sock.__sk_common.skc_v6_daddr" without "IPv6";
    SK_COOKIE        "sock.__sk_common.skc_cookie" without "the listener's socket cookie";
    SK_DEPTH         "sock.sk_ack_backlog";
    SK_LIMIT         "sock.sk_max_ack_backlog";
    SK_SHUTDOWN      "sock.sk_shutdown" without "telling a listener that was shut down from one that was closed";
    SK_SOCKET        "sock.sk_socket" without "the listener's inode";
    SOCKET_INODE     "socket_alloc.vfs_inode.i_ino" without "the listener's inode";
    SOCKET_FILE      "socket.file" without "the listener's inode";
    FILE_INODE       "file.f_inode" without "the listener's inode";
    INODE_NUMBER     "inode.i_ino" without "the listener's inode";
    SYN_DEPTH        "inet_connection_sock.icsk_accept_queue.qlen";
    SYN_YOUNG        "inet_connection_sock.icsk_accept_queue.young";
    NET_ID           "net.ns.inum";
    NET_COOKIE       "net.net_cookie" without "telling a recreated namespace from its predecessor";
    NET_COUNTERS     "net.mib.net_statistics";
    NET_SYNCOOKIES   "net.ipv4.sysctl_tcp_syncookies" without "tcp_syncookies";
    NET_ABORT        "net.ipv4.sysctl_tcp_abort_on_overflow" without "tcp_abort_on_overflow";
    NET_MAX_SYN      "net.ipv4.sysctl_max_syn_backlog" without "tcp_max_syn_backlog";
    NET_SOMAXCONN    "net.core.sysctl_somaxconn" without "somaxconn";
    NET_FAST_OPEN    "net.ipv4.sysctl_tcp_fastopen" without "SYNs that find the fast-open queue full";
    SKB_HEAD         "sk_buff.head";
    SKB_DATA         "sk_buff.data";
    SKB_NETWORK      "sk_buff.network_header";
    SKB_TRANSPORT    "sk_buff.transport_header";
    SKB_PROTOCOL     "sk_buff.protocol";
    SKB_DEV          "sk_buff.dev";
    SKB_DST          "sk_buff._skb_refdst";
    IPV4_PROTOCOL    "iphdr.protocol";
    IPV6_NEXT        "ipv6hdr.nexthdr";
    DST_DEV          "dst_entry.dev";
    DEV_NET          "net_device.nd_net.net";
    ROUTE_TYPE       "rtable.rt_type" without "telling a SYN to a broadcast address from one that is answered with a reset";
    ROUTE6_FLAGS     "rt6_info.rt6i_flags" without "telling a SYN to a multicast address from one that is answered with a reset";
    REQ_LISTENER     "request_sock.__req_common.skc_listener";
    REQ_TIMER        "request_sock.rsk_timer";
    REQ_RETRANSMITS  "request_sock.num_retrans";
    REQ_HASHED       "request_sock.__req_common.skc_nulls_node.pprev";
    REQ_CHILD        "request_sock.sk";
    REQ_SYNACK_US    "tcp_request_sock.snt_synack" without "how long handshakes take";
    SK_REUSEPORT     "sock.sk_reuseport_cb" without "the place in a SO_REUSEPORT group (then the order of making tells)";
    GROUP_SIZE       "sock_reuseport.num_socks" without "the place in a SO_REUSEPORT group (then the order of making tells)";
    GROUP_SOCKETS    "sock_reuseport.socks" without "the place in a SO_REUSEPORT group (then the order of making tells)";
    TASK_PID         "task_struct.tgid" without "who holds a listener (then /proc tells)";
    TASK_LEADER      "task_struct.group_leader" without "who holds a listener (then /proc tells)";
    TASK_COMM        "task_struct.comm" without "who holds a listener (then /proc tells)";
    FILE_PRIVATE     "file.private_data" without "who holds a listener (then /proc tells)";
    SOCKET_SK        "socket.sk" without "who holds a listener (then /proc tells)";
    PERCPU_SLOTS     "bpf_array.pptrs";
}
