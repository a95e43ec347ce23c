//! A listener's place among those that share its address and port by `SO_REUSEPORT`.

/// Place in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Group {
    /// Place in the group, from 0.
    pub index: u32,
    /// How many sockets are in it.
    pub size: u32,
    /// The part of the group's connections since attached that this socket was given.
    pub share: Option<f64>,
    /// Whether its queue is full while a sibling's is empty.
    pub full_among_idle: bool,
}
