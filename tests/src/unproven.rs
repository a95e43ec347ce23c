//! What live tests do not prove, where, and why: the one list of it. A test asks it before it
//! leaves something out, and fails if the list does not say so. `cargo xtask lint` finds tests
//! that end early without asking; `environment` checks that the list names tests that exist.

use std::path::Path;

use crate::setting::{Attach, attach, kernel};

/// One thing that one test does not prove.
#[derive(Debug)]
pub struct Unproven {
    /// The test, as the test program lists it.
    pub test: &'static str,
    /// What of it; [`ALL`] if the test proves nothing there.
    pub part: &'static str,
    /// On which kernels, attached how.
    pub place: Place,
    /// Why it cannot be proved there.
    pub why: &'static str,
}

/// A kernel, and a way to attach.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Attached that way, on every kernel.
    By(Attach),
    /// Attached that way, on kernels before that version.
    Before(Attach, (u32, u32)),
    /// However it attaches, on kernels before that version.
    Older((u32, u32)),
    /// However it attaches, on kernels that lack this file.
    Without(&'static str),
    /// However it attaches, on kernels that lack this function.
    WithoutSymbol(&'static str),
}

impl Place {
    fn is_here(self) -> bool {
        match self {
            Self::By(way) => attach() == way,
            Self::Before(way, version) => attach() == way && kernel() < version,
            Self::Older(version) => kernel() < version,
            Self::Without(file) => !Path::new(file).exists(),
            Self::WithoutSymbol(function) => {
                let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
                let mut names = symbols.lines().filter_map(|line| line.split(' ').nth(2));
                !names.any(|name| name == function)
            }
        }
    }
}

/// The whole test.
pub const ALL: &str = "all";

/// A program that only the guests of `cargo xtask vm` have.
const GUEST: &str = "/bin/vm-exit";

/// In the order of the tests' files.
pub const UNPROVEN: &[Unproven] = &[
    Unproven {
        test: "bad_input::types_from_a_file",
        part: ALL,
        place: Place::By(Attach::Fentry),
        why: "fentry takes the kernel's own types; that a file is refused is tested beside it",
    },
    Unproven {
        test: "concurrency::threads_that_accept_from_several_listeners",
        part: ALL,
        place: Place::By(Attach::Tracepoint),
        why: "tracepoints do not show accept(); `check` lists it as not observable",
    },
    Unproven {
        test: "diagnose::a_gap_between_two_listeners",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "guide::sessions_in_the_documentation_are_real",
        part: ALL,
        place: Place::Without(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide.md")),
        why: "the pages are with the sources, which a guest does not have",
    },
    Unproven {
        test: "handshakes::a_silent_client_is_asked_again",
        part: ALL,
        place: Place::By(Attach::Tracepoint),
        why: "no packet is received when a timer fires; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_syn_without_an_md5_signature",
        part: ALL,
        place: Place::WithoutSymbol("tcp_md5_do_add"),
        why: "this kernel has no MD5 signatures of TCP",
    },
    Unproven {
        test: "in_front::a_syn_without_an_md5_signature",
        part: "the verdicts",
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_syn_without_an_authentication_option",
        part: ALL,
        place: Place::WithoutSymbol("tcp_inbound_ao_hash"),
        why: "this kernel has no Authentication Option of TCP",
    },
    Unproven {
        test: "in_front::an_md5_signature_that_is_wrong_or_not_asked_for",
        part: ALL,
        place: Place::WithoutSymbol("tcp_md5_do_add"),
        why: "this kernel has no MD5 signatures of TCP",
    },
    Unproven {
        test: "in_front::an_md5_signature_that_is_wrong_or_not_asked_for",
        part: "the verdicts",
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::an_authentication_option_that_is_wrong_or_not_asked_for",
        part: ALL,
        place: Place::WithoutSymbol("tcp_inbound_ao_hash"),
        why: "this kernel has no Authentication Option of TCP",
    },
    Unproven {
        test: "in_front::a_syn_from_too_far_away",
        part: "the verdicts",
        place: Place::Older((6, 12)),
        why: "this kernel gives no such reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_syn_that_a_socket_filter_drops",
        part: ALL,
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_filter_leaves_other_listeners_alone",
        part: ALL,
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_filter_is_diagnosed",
        part: ALL,
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_syn_that_is_damaged",
        part: "the verdicts",
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "in_front::a_syn_that_a_policy_blocks",
        part: ALL,
        place: Place::WithoutSymbol("xfrm_add_policy"),
        why: "this kernel's part that takes IPsec policies (xfrm_user) is a module that is not there",
    },
    Unproven {
        test: "in_front::a_syn_that_a_policy_blocks",
        part: ALL,
        place: Place::Without("/proc/net/xfrm_stat"),
        why: "this kernel has no IPsec, or does not count what it drops",
    },
    Unproven {
        test: "in_front::a_syn_that_a_policy_blocks",
        part: "the verdicts",
        place: Place::Older((5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "listeners::a_multipath_listener",
        part: ALL,
        place: Place::Without("/proc/sys/net/mptcp/enabled"),
        why: "this kernel has no Multipath TCP",
    },
    Unproven {
        test: "listeners::requests_move_to_another_listener",
        part: "the sums",
        place: Place::Before(Attach::Tracepoint, (5, 14)),
        why: "the requests of a closed listener are forgotten, and nothing shows which had chosen it",
    },
    Unproven {
        test: "stall::files::others_are_kept_by_something_else",
        part: ALL,
        place: Place::Without(GUEST),
        why: "fs.file-max is the whole machine's, so it is lowered in guests only",
    },
    Unproven {
        test: "stall::files::the_host_is_out_of_them",
        part: ALL,
        place: Place::Without(GUEST),
        why: "fs.file-max is the whole machine's, so it is lowered in guests only",
    },
    Unproven {
        test: "stall::reclaiming_memory",
        part: ALL,
        place: Place::Without("/sys/fs/cgroup/cgroup.controllers"),
        why: "memory.high is of cgroup v2, which has no controllers here",
    },
    Unproven {
        test: "refused::a_port_that_was_left",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "refused::a_port_on_which_nobody_ever_listened",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "refused::a_syn_to_a_group_is_not_answered",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "refused::a_scan_of_many_ports",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "refused::filters_apply",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "refused::haproxy_restarts",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
    Unproven {
        test: "refused::nginx_restarts",
        part: ALL,
        place: Place::Before(Attach::Tracepoint, (5, 17)),
        why: "this kernel gives no reason for freeing a packet; `check` lists it as not observable",
    },
];

/// Whether that part of that test is left out here. Fails if nobody ever said that it may be.
#[must_use]
#[track_caller]
pub fn unproven(test: &str, part: &str) -> bool {
    let rows: Vec<_> = UNPROVEN
        .iter()
        .filter(|row| (row.test, row.part) == (test, part))
        .collect();
    assert!(
        !rows.is_empty(),
        "{test}, {part}: not in tests/src/unproven.rs"
    );
    let here = rows.into_iter().find(|row| row.place.is_here());
    if let Some(row) = here {
        println!("not proved here: {part} of {test}, as {}", row.why);
    }
    here.is_some()
}
