//! The kernel's counters of packets that never came into a queue, by outcome. Most count every
//! packet, and a verdict is of a SYN: so they bound our sums, and are all there is where a kernel
//! gives no reasons for freeing a packet. Some count one outcome and nothing else.

use std::collections::BTreeMap;

use queue_trace_common::{
    counter::{DEFERRED, FAST_OPEN_FULL, SOLE},
    outcome::{
        ACK_DEFERRED, FAST_OPEN_REFUSED, OUTCOMES, Outcome, SYN_DROPPED_AO, SYN_DROPPED_CHECKSUM,
        SYN_DROPPED_MD5, SYN_DROPPED_MIN_TTL, SYN_DROPPED_POLICY, SYN_REFUSED_NO_LISTENER,
    },
};

/// One row of the registry.
#[derive(Debug, Clone, Copy)]
pub struct FrontCounters {
    /// The outcome of a SYN that moves one of them.
    pub tag: u8,
    /// In which file of `/proc/net` they are.
    pub file: FrontFile,
    /// What moves them.
    pub scope: Scope,
    /// Their names. Exactly one of them moves with a packet.
    pub names: &'static [&'static str],
}

/// What moves such counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The outcome and nothing else: our sum is to be the same.
    Outcome,
    /// Packets of every kind for listeners that were set up for it.
    Listeners,
    /// Packets of every kind on any machine, also those that were for nobody.
    Packets,
    /// Resets for whatever reason. Who sends a SYN with an MD5 signature to nobody gets none, so our
    /// sum is not bounded by them.
    Resets,
}

/// A file of `/proc/net` and its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontFile {
    /// The section `TcpExt` of `netstat`.
    Netstat,
    /// The section `Tcp` of `snmp`.
    Snmp,
    /// `xfrm_stat`, which kernels have that have IPsec.
    Xfrm,
}

/// How many rows there are.
pub const COUNT: usize = 8;

/// Every row. A socket's filter has no counter.
pub static FRONT: [FrontCounters; COUNT] = [
    FrontCounters {
        tag: SYN_DROPPED_MD5,
        file: FrontFile::Netstat,
        scope: Scope::Listeners,
        names: &["TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure"],
    },
    FrontCounters {
        tag: SYN_DROPPED_AO,
        file: FrontFile::Netstat,
        scope: Scope::Listeners,
        names: &["TCPAORequired", "TCPAOBad", "TCPAOKeyNotFound"],
    },
    FrontCounters {
        tag: SYN_DROPPED_MIN_TTL,
        file: FrontFile::Netstat,
        scope: Scope::Listeners,
        names: &["TCPMinTTLDrop"],
    },
    FrontCounters {
        tag: SYN_DROPPED_CHECKSUM,
        file: FrontFile::Snmp,
        scope: Scope::Packets,
        names: &["InCsumErrors"],
    },
    FrontCounters {
        tag: SYN_DROPPED_POLICY,
        file: FrontFile::Xfrm,
        scope: Scope::Packets,
        names: &[
            "XfrmInBufferError",
            "XfrmInHdrError",
            "XfrmInStateMismatch",
            "XfrmInTmplMismatch",
            "XfrmInNoPols",
            "XfrmInPolBlock",
            "XfrmInPolError",
        ],
    },
    FrontCounters {
        tag: ACK_DEFERRED,
        file: FrontFile::Netstat,
        scope: Scope::Outcome,
        names: &[SOLE[DEFERRED].name],
    },
    FrontCounters {
        tag: FAST_OPEN_REFUSED,
        file: FrontFile::Netstat,
        scope: Scope::Outcome,
        names: &[SOLE[FAST_OPEN_FULL].name],
    },
    FrontCounters {
        tag: SYN_REFUSED_NO_LISTENER,
        file: FrontFile::Snmp,
        scope: Scope::Resets,
        names: &["OutRsts"],
    },
];

impl FrontCounters {
    /// The outcome of a SYN that moves one of them.
    #[must_use]
    pub fn outcome(&self) -> &'static Outcome {
        &OUTCOMES[usize::from(self.tag)]
    }

    /// How many of the outcome there were beyond what its counters say, or, where these count it
    /// alone, how far the two are apart.
    #[must_use]
    pub const fn unexplained(&self, kernel: u64, seen: u64) -> u64 {
        match self.scope {
            Scope::Outcome => kernel.abs_diff(seen),
            Scope::Listeners | Scope::Packets => seen.saturating_sub(kernel),
            Scope::Resets => 0,
        }
    }

    /// The row of an outcome, if it has one.
    #[must_use]
    pub fn index_of(tag: u8) -> Option<usize> {
        FRONT.iter().position(|row| row.tag == tag)
    }
}

/// The texts of the files; empty where a kernel lacks one.
#[derive(Debug, Clone, Copy, Default)]
pub struct FrontTexts<'a> {
    /// `/proc/net/netstat`.
    pub netstat: &'a str,
    /// `/proc/net/snmp`.
    pub snmp: &'a str,
    /// `/proc/net/xfrm_stat`.
    pub xfrm: &'a str,
}

impl FrontTexts<'_> {
    /// The sum of the counters of each row. A counter that a kernel lacks is 0.
    #[must_use]
    pub fn sums(&self) -> [u64; COUNT] {
        let netstat = section(self.netstat, "TcpExt:").unwrap_or_default();
        let snmp = section(self.snmp, "Tcp:").unwrap_or_default();
        let xfrm = self.xfrm.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        });
        let xfrm: BTreeMap<_, _> = xfrm.collect();
        FRONT.each_ref().map(|row| {
            let columns = match row.file {
                FrontFile::Netstat => &netstat,
                FrontFile::Snmp => &snmp,
                FrontFile::Xfrm => &xfrm,
            };
            let values = row.names.iter().filter_map(|name| columns.get(name));
            let values = values.filter_map(|value| value.parse::<u64>().ok());
            values.fold(0, u64::wrapping_add)
        })
    }
}

/// The columns of a section of such a file, by name: a line of names and a line of values.
pub(super) fn section<'a>(text: &'a str, title: &str) -> Option<BTreeMap<&'a str, &'a str>> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(title));
    let (names, values) = (lines.next()?, lines.next()?);
    let columns = names.split_whitespace().zip(values.split_whitespace());
    Some(columns.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETSTAT: &str = "\
TcpExt: TCPMD5NotFound ListenDrops TCPMD5Failure TCPMinTTLDrop TCPDeferAcceptDrop
TcpExt: 3 20 4 9 11
";
    const SNMP: &str = "\
Ip: Forwarding InCsumErrors
Ip: 1 77
Tcp: RtoAlgorithm InCsumErrors OutRsts
Tcp: 1 5 6
";
    const XFRM: &str = "\
XfrmInError             \t1
XfrmInNoPols            \t2
XfrmInPolBlock          \t6
";

    #[test]
    fn the_counters_of_each_outcome_are_added_up() {
        let texts = FrontTexts {
            netstat: NETSTAT,
            snmp: SNMP,
            xfrm: XFRM,
        };
        let sums = texts.sums();
        let of = |tag| sums[FrontCounters::index_of(tag).unwrap()];
        assert_eq!(of(SYN_DROPPED_MD5), 7);
        assert_eq!(of(SYN_DROPPED_AO), 0);
        assert_eq!(of(SYN_DROPPED_MIN_TTL), 9);
        assert_eq!(of(SYN_DROPPED_CHECKSUM), 5);
        assert_eq!(of(SYN_DROPPED_POLICY), 8);
        assert_eq!(of(ACK_DEFERRED), 11);
        assert_eq!(of(SYN_REFUSED_NO_LISTENER), 6);
        assert_eq!(FrontTexts::default().sums(), [0; COUNT]);
    }
}
