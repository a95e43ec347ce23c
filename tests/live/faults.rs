//! Refusals that come from outside TCP: a security module that says no, memory that is
//! not there.
//!
//! One is left out: `syn_dropped:no_memory` takes a kernel that injects faults, which those
//! of distributions do not.

use std::fs;

use libc::{BPF_K, BPF_RET};
use live_tests::{Launch, Room, SecurityModule, Shown, expected};
use queue_trace::lab::{
    Netns,
    raw::{PeerAnswer, RawPeer, Wire},
};
use queue_trace_common::outcome;
use socket2::{SockFilter, SockRef};

use crate::bench::{PATIENCE, half_open, let_in, syns};

const REFUSED: usize = 12;

/// A security module refuses SYNs; before and after it clients get in.
#[test]
fn a_security_module_refuses() {
    for cookies in [0, 2] {
        let rooms = Room::of_each_family(10, &[("net.ipv4.tcp_syncookies", cookies)]);
        let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
        for room in &rooms {
            let play = || {
                let mut wire = Wire::open(room.family)?;
                let_in(&mut wire, room.address, 1)?;
                let module = SecurityModule::that_refuses()?;
                syns(&mut wire, room.address, REFUSED)?;
                drop(module);
                let_in(&mut wire, room.address, 1)?;
                Ok(())
            };
            room.netns.run(play).unwrap();
        }
        let recording = tracer.stop();
        let (begun, established) = match cookies {
            0 => (outcome::QUEUED, outcome::ESTABLISHED_HANDSHAKE),
            _ => (outcome::COOKIE_SENT_ALWAYS, outcome::ESTABLISHED_COOKIE),
        };
        let refused = (outcome::SYN_DROPPED_SECURITY, REFUSED as u64);
        let sums = expected(&[(begun, 2), (established, 2), refused], Shown::All);
        for room in &rooms {
            recording.assert_exact(&room.netns, &room.before, &sums);
        }
    }
}

/// What sockets may take for filters and options, while this lives. A setting of the
/// namespace since Linux 6.8, of the whole machine before.
struct OptionMemory<'a> {
    netns: &'a Netns,
    before: String,
}

impl<'a> OptionMemory<'a> {
    const NAME: &'static str = "net.core.optmem_max";
    const PATH: &'static str = "/proc/sys/net/core/optmem_max";

    fn limited_to(bytes: u32, netns: &'a Netns) -> Self {
        let before = netns
            .sysctl(Self::NAME)
            .unwrap_or_else(|_| fs::read_to_string(Self::PATH).unwrap());
        let limited = Self { netns, before };
        limited.set(&bytes.to_string());
        limited
    }

    fn set(&self, value: &str) {
        if self.netns.sysctl(Self::NAME).is_ok() {
            self.netns.set_sysctl(Self::NAME, value).unwrap();
        } else {
            fs::write(Self::PATH, value).unwrap();
        }
    }
}

impl Drop for OptionMemory<'_> {
    fn drop(&mut self) {
        self.set(&self.before);
    }
}

/// A filter that lets everything through.
const PASS_ALL: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX);

/// A connection inherits its listener's filter, for which there is no memory: the final ACK
/// is dropped. Sent again when there is, it lets its client in. With
/// `tcp_abort_on_overflow` the client is reset instead.
#[test]
fn no_memory_for_connections() {
    for abort in [0, 1] {
        let sysctls = [
            ("net.ipv4.tcp_syncookies", 0),
            ("net.ipv4.tcp_abort_on_overflow", abort),
        ];
        let rooms = Room::of_each_family(50, &sysctls);
        for room in &rooms {
            SockRef::from(&room.listener)
                .attach_filter(&[PASS_ALL])
                .unwrap();
        }
        let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
        for room in &rooms {
            let mut wire = room.netns.run(|| Wire::open(room.family)).unwrap();
            let mut peers = half_open(&mut wire, room.address, REFUSED).unwrap();
            let acks = |wire: &mut Wire, peers: &[RawPeer]| {
                for peer in peers {
                    peer.ack(wire).unwrap();
                }
                wire.settle().unwrap();
            };
            let none = OptionMemory::limited_to(0, &room.netns);
            acks(&mut wire, &peers);
            drop(none);
            if abort == 0 {
                acks(&mut wire, &peers);
                continue;
            }
            for peer in &mut peers {
                let answer = peer.answer(&mut wire, PATIENCE).unwrap();
                assert_eq!(answer, Some(PeerAnswer::Reset));
            }
        }
        let recording = tracer.stop();
        let count = REFUSED as u64;
        let let_in = if abort == 1 { 0 } else { count };
        let outcomes = [
            (outcome::QUEUED, count),
            (outcome::ACK_DROPPED_NO_MEMORY, count),
            (outcome::ESTABLISHED_HANDSHAKE, let_in),
        ];
        let sums = expected(&outcomes, Shown::All);
        for room in &rooms {
            recording.assert_exact(&room.netns, &room.before, &sums);
        }
    }
}
