//! From the bytes of a record to an [`Event`]. A pure function of the bytes: it never
//! panics, whatever they are, and never reports what they do not say.

use std::net::{IpAddr, Ipv6Addr};

use bytes::Buf;
use queue_trace_common::{
    outcome::{Outcome, Step},
    record::{self, ACCEPTED, COOKIE, INODE, LISTENER, PACKET, QUEUES, Record, SYSCTLS, WAITED},
};

use crate::model::{
    event::{AcceptQueue, Event, SynQueue, Sysctls},
    socket::{Client, Listener, Process},
};

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not as long as a record.
    #[error("a record of {0} bytes, not {size}", size = record::SIZE)]
    Length(usize),
    /// Of another version of the kernel side.
    #[error("a record of version {0}, not {version}", version = record::VERSION)]
    Version(u8),
    /// With an outcome that is not in the registry.
    #[error("a record with the unknown outcome {0}")]
    Outcome(u8),
}

/// Decodes one record, which must be all that the buffer holds. `wall_offset_ns` is
/// the wall clock minus the monotonic clock.
///
/// # Errors
/// [`DecodeError`], if the bytes are not a record of this version.
pub fn decode(mut bytes: impl Buf, wall_offset_ns: i128) -> Result<Event, DecodeError> {
    let length = bytes.remaining();
    let mut whole = [0; record::SIZE];
    if length != whole.len() {
        return Err(DecodeError::Length(length));
    }
    bytes.copy_to_slice(&mut whole);
    let record: Record = bytemuck::pod_read_unaligned(&whole);
    if record.version != record::VERSION {
        return Err(DecodeError::Version(record.version));
    }
    let outcome = Outcome::of(record.outcome).ok_or(DecodeError::Outcome(record.outcome))?;
    let known = |bit: u16| record.present & bit != 0;
    Ok(Event {
        mono_ns: record.mono_ns,
        wall_ns: i128::from(record.mono_ns) + wall_offset_ns,
        outcome,
        count: record.count.into(),
        netns: record.netns,
        listener: Listener {
            addr: known(LISTENER).then(|| address(record.listener_addr)),
            port: record.port,
            cookie: known(COOKIE).then_some(record.cookie),
            inode: known(INODE).then_some(record.inode),
            device: (known(LISTENER) && record.device != 0).then_some(record.device),
        },
        local: known(PACKET).then(|| address(record.local_addr)),
        client: known(PACKET).then(|| Client {
            addr: address(record.client_addr),
            port: record.client_port,
        }),
        accept_queue: known(QUEUES).then_some(AcceptQueue {
            depth: record.accept_depth,
            limit: record.accept_limit,
        }),
        syn_queue: known(QUEUES).then_some(SynQueue {
            depth: record.syn_depth,
            young: record.syn_young,
            limit: record.accept_limit,
        }),
        sysctls: known(SYSCTLS).then_some(Sysctls {
            tcp_syncookies: record.syncookies,
            tcp_abort_on_overflow: record.abort_on_overflow,
            tcp_max_syn_backlog: record.max_syn_backlog,
            somaxconn: record.somaxconn,
        }),
        retransmits: (outcome.step == Step::Timer).then_some(record.retransmits),
        waited_us: known(WAITED).then_some(record.waited_ns / 1000),
        process: known(ACCEPTED).then(|| Process {
            pid: record.pid,
            comm: text(&record.comm).unwrap_or_default(),
        }),
        moved: record.moved,
        cpu: Some(record.cpu),
        sk: record.sk,
    })
}

/// The text before the first zero; `None` if there is none.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// An address of a record; IPv4 travels as `::ffff:a.b.c.d`.
fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use queue_trace_common::outcome;

    use super::*;

    fn record() -> Record {
        Record {
            version: record::VERSION,
            outcome: outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
            count: 1,
            mono_ns: 5,
            port: 8080,
            ..Record::default()
        }
    }

    #[test]
    fn what_is_not_present_is_absent() {
        let event = decode(bytemuck::bytes_of(&record()), 100).unwrap();
        assert_eq!(event.wall_ns, 105);
        assert_eq!(event.outcome.verdict, "syn_dropped");
        assert_eq!(event.listener.port, 8080);
        assert_eq!(event.listener.addr, None);
        assert_eq!((event.client, event.local), (None, None));
        assert_eq!((event.accept_queue, event.syn_queue), (None, None));
        assert_eq!((event.sysctls, event.retransmits), (None, None));
        let json = serde_json::to_value(&event).unwrap();
        assert!(json.get("client").is_none() && json.get("accept_queue").is_none());
    }

    #[test]
    fn a_device_is_told_if_there_is_one() {
        let mut bound = record();
        bound.present = LISTENER;
        assert_eq!(
            decode(bytemuck::bytes_of(&bound), 0)
                .unwrap()
                .listener
                .device,
            None
        );
        bound.device = 4;
        let event = decode(bytemuck::bytes_of(&bound), 0).unwrap();
        assert_eq!(event.listener.device, Some(4));
    }

    #[test]
    fn ipv4_comes_back_as_ipv4() {
        let mut packet = record();
        packet.present = PACKET | LISTENER;
        packet.client_addr = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        packet.listener_addr = Ipv6Addr::UNSPECIFIED.octets();
        let event = decode(bytemuck::bytes_of(&packet), 0).unwrap();
        assert_eq!(event.client.unwrap().addr.to_string(), "10.0.0.1");
        assert_eq!(event.listener.addr.unwrap().to_string(), "::");
    }

    #[test]
    fn other_versions_and_outcomes_are_refused() {
        let mut other = record();
        other.version += 1;
        let error = decode(bytemuck::bytes_of(&other), 0).unwrap_err();
        assert_eq!(error, DecodeError::Version(record::VERSION + 1));
        other = record();
        other.outcome = outcome::COUNT as u8;
        let error = decode(bytemuck::bytes_of(&other), 0).unwrap_err();
        assert_eq!(error, DecodeError::Outcome(outcome::COUNT as u8));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            match decode(&bytes[..], 0) {
                Ok(event) => {
                    prop_assert_eq!(bytes.len(), record::SIZE);
                    let record: Record = bytemuck::pod_read_unaligned(&bytes);
                    prop_assert_eq!(event.outcome.tag, record.outcome);
                    prop_assert_eq!(event.client.is_some(), record.present & PACKET != 0);
                    serde_json::to_string(&event).unwrap();
                }
                Err(DecodeError::Length(length)) => prop_assert_ne!(length, record::SIZE),
                Err(_) => prop_assert_eq!(bytes.len(), record::SIZE),
            }
        }

        #[test]
        fn any_record_of_this_version_is_decoded(mut bytes in proptest::collection::vec(any::<u8>(), record::SIZE)) {
            let version = std::mem::offset_of!(Record, version);
            let tag = std::mem::offset_of!(Record, outcome);
            bytes[version] = record::VERSION;
            bytes[tag] %= outcome::COUNT as u8;
            prop_assert!(decode(&bytes[..], 0).is_ok());
        }
    }
}
