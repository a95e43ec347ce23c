//! How a packet ended, as the two tracepoints that free packets tell it.

/// How a packet was freed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// As if all were well: every SYN that reached a listener, dropped or not.
    Consumed,
    /// As dropped. With the socket that dropped it, where the tracepoint tells, else
    /// 0.
    Dropped(u64),
}
