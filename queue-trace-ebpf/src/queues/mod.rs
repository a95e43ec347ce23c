//! The queues' statistics: how deep, how full, whose, how long the wait.

pub mod gauge;
pub mod kept;
pub mod owner;
mod places;
pub mod wait;
