//! The self-test at start: handshakes on listeners of a private network namespace. Every program
//! that is attached must run, and what the kernel side read of these handshakes, their port and
//! namespace, must be what they were. A function that the compiler inlined, a switch that keeps
//! programs from running, a program that reads something else than it should: each shows here,
//! and not in a missing verdict.
//!
//! That programs ran is known from the kernel's own counts; what they read, from ours.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use queue_trace_common::{
    hook::{self, HOOKS, Hook},
    outcome::{self, OUTCOMES},
    settings::MAX_NETNS,
};

use crate::{
    kernel::{
        mark,
        plan::{HookFamily, Plan},
        probe::Probe,
        selection::Selection,
    },
    lab::{
        Ending, Family, Listen, Netns, Pace, add_address, connect_each,
        raw::{PeerAnswer, RawPeer, Wire},
    },
    model::event::Name,
};

/// Where the handshakes are made. It is there before anything is attached, so that filters let
/// it through.
pub struct SelfTest {
    /// The namespace, whose records are not the user's.
    pub netns: Netns,
    port: u16,
    /// Whether the kernel side counts what happens here, whatever the filters.
    is_let_in: bool,
}

/// What the self-test found.
#[derive(Debug, Default)]
pub struct Faults {
    /// A sentence for each hook that did not do its part; none where it is not the work of one hook.
    pub hooks: Vec<(Option<&'static Hook>, String)>,
    /// Why the kernel's reasons for freeing a packet cannot be relied on, if they cannot.
    pub reasons: Option<String>,
}

/// Programs whose event the self-test does not make: a timer takes a second, an ICMP error says
/// nothing of a handshake, and no listener is closed on connections that wait.
const NOT_MADE: [&str; 4] = ["timer", "icmp", "retransmit_synack", "forget"];

/// What the names of the programs begin with that look at the kernel's reasons.
const REASONS: &str = "packet_refused";

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(3);
const COOKIES: &str = "net.ipv4.tcp_syncookies";
const MAX_SYN_BACKLOG: &str = "net.ipv4.tcp_max_syn_backlog";

/// Addresses of the listeners and clients whose handshakes are compared. Nobody else uses them,
/// so filters can let them through meanwhile: an address of loopback that is not the usual one,
/// and ranges set aside for documentation (RFC 5737, RFC 3849).
const LISTENER_V4: Ipv4Addr = Ipv4Addr::new(127, 113, 117, 101);
const LISTENER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x7175, 0, 0, 0, 0, 1);
const ADDRESSES: [&str; 2] = ["127.113.117.101/32", "2001:db8:7175::/48"];
const CLIENTS: [&str; 2] = ["198.51.100.0/24", "2001:db8:5::/64"];

impl SelfTest {
    /// Makes the namespace.
    ///
    /// # Errors
    /// If this process may not.
    pub fn set(selection: &Selection) -> Result<Self> {
        let port = selection.ports.first().map_or(PORT, |range| *range.start());
        let netns = Netns::new()?;
        // So that every other queue-trace leaves it out.
        netns.set_sysctl(mark::SYSCTL, mark::own())?;
        Ok(Self {
            netns,
            port,
            is_let_in: selection.netns.len() < MAX_NETNS,
        })
    }

    /// What the user wants to see, and the self-test.
    #[must_use]
    pub fn let_in(&self, selection: &Selection) -> Selection {
        let mut selection = selection.clone();
        if !selection.netns.is_empty() && self.is_let_in {
            selection.netns.insert(self.netns.id(), None);
        }
        selection
    }

    /// Makes the handshakes, and looks which programs ran and what was read.
    ///
    /// # Errors
    /// If the self-test cannot be made here; nothing is known then.
    pub fn run(&self, probe: &mut Probe, plan: &Plan) -> Result<Faults> {
        let _counting = probe.count_runs()?;
        let before: HashMap<_, _> = runs(probe)?.collect();
        let (addresses, clients) = (networks(ADDRESSES)?, networks(CLIENTS)?);
        probe.let_in(&addresses, &clients)?;
        let played = self.play(probe);
        probe.shut_out()?;
        let (left_out, read) = played?;

        let mut faults = Faults::default();
        let silent: BTreeSet<_> = runs(probe)?
            .filter(|(name, runs)| before.get(name) == Some(runs))
            .map(|(name, _)| name)
            .filter(|name| !NOT_MADE.iter().any(|prefix| name.starts_with(prefix)))
            .filter(|name| !left_out.iter().any(|part| name.contains(part)))
            .collect();
        for program in &silent {
            let hook = hook_of(program);
            let what = hook.map_or(program.as_str(), |hook| hook.function);
            let why = format!("{what} did not run in the self-test");
            if program.starts_with(REASONS) {
                faults.reasons = Some(why);
            } else {
                faults.add(hook, why);
            }
        }
        let mut missing_by_reason = None;
        if self.is_let_in {
            for expected in read.missing(plan) {
                let why = expected.sentence(plan);
                if expected.is_told_by_reason(plan) {
                    missing_by_reason = Some(why);
                } else {
                    faults.add(expected.hook(plan), why);
                }
            }
            for hook in read.not_kept(plan) {
                let why = format!(
                    "what was read at {} was not the self-test's own listener",
                    hook.function
                );
                faults.add(Some(hook), why);
            }
        }
        // It may be missing for want of a hook: that a listener was closed is told by one. Then the
        // reasons are not to blame, and no hook is tried in their place, which on Linux 7.2 would
        // turn ftrace off for good where it was switched off for a while.
        if faults.hooks.is_empty() {
            faults.reasons = faults.reasons.or(missing_by_reason);
        }
        Ok(faults)
    }

    /// Gives the parts that this kernel does not have, and what was read.
    fn play(&self, probe: &mut Probe) -> Result<(Vec<&'static str>, Read)> {
        let mut left_out = Vec::new();
        let mut read = Read::default();
        self.handshakes(Family::V4)?;
        self.cookie(Family::V4)?;
        self.nobody(Family::V4)?;
        read.take(&SEEN_V4, self, probe)?;
        self.full(probe, &mut read)?;
        self.last_quarter()?;
        read.take(&SEEN_LAST_QUARTER, self, probe)?;
        // Kernels without IPv6 or MPTCP have nothing there to see.
        match self.handshakes(Family::V6).and_then(|()| {
            self.netns.run(|| add_address(LISTENER_V6))?;
            self.cookie(Family::V6)?;
            self.nobody(Family::V6)
        }) {
            Ok(()) => read.take(&SEEN_V6, self, probe)?,
            Err(_) => left_out.extend(["_v6_", "mptcp6"]),
        }
        for (family, programs) in [(Family::V4, "mptcp4"), (Family::V6, "mptcp6")] {
            if self.mptcp(family).is_err() {
                left_out.push(programs);
            }
        }
        Ok((left_out, read))
    }

    /// A handshake through the queues, taken by the application, and one by cookie.
    fn handshakes(&self, family: Family) -> Result<()> {
        for cookies in ["0", "2"] {
            self.netns.set_sysctl(COOKIES, cookies)?;
            self.connect(family, Listen::default())?;
        }
        Ok(())
    }

    fn mptcp(&self, family: Family) -> Result<()> {
        let mptcp = Listen {
            mptcp: true,
            ..Listen::default()
        };
        self.connect(family, mptcp)
    }

    fn connect(&self, family: Family, listen: Listen) -> Result<()> {
        let address = SocketAddr::new(family.loopback(), self.port);
        self.netns.run(|| {
            let listener = listen.on(address)?;
            let clients = connect_each(address, 1, Pace::OneByOne, PATIENCE, None)?;
            ensure!(
                clients
                    .iter()
                    .all(|client| client.ending() == Ending::Connected),
                "a client could not connect over {family}"
            );
            listener.accept().context("cannot accept")?;
            Ok(())
        })
    }

    fn listener(&self, family: Family) -> SocketAddr {
        let address = match family {
            Family::V4 => IpAddr::from(LISTENER_V4),
            Family::V6 => IpAddr::from(LISTENER_V6),
        };
        SocketAddr::new(address, self.port)
    }

    /// A handshake by cookie whose addresses the filters let through.
    fn cookie(&self, family: Family) -> Result<()> {
        self.netns.set_sysctl(COOKIES, "2")?;
        let address = self.listener(family);
        self.netns.run(|| {
            let listener = Listen::default().on(address)?;
            let mut wire = Wire::open(family)?;
            let mut peer = RawPeer::new(&mut wire, address)?;
            peer.syn(&wire)?;
            let cookie = peer.syn_ack(&mut wire, PATIENCE)?;
            ensure!(cookie.is_some(), "a SYN had no answer over {family}");
            peer.ack(&wire)?;
            wire.settle()?;
            let _connection = listener.accept().context("cannot accept")?;
            // The next step's clients have the same addresses.
            peer.rst(&wire)?;
            wire.settle()
        })
    }

    /// A SYN for a port whose listener was closed.
    fn nobody(&self, family: Family) -> Result<()> {
        let address = self.listener(family);
        self.netns.run(|| {
            let mut wire = Wire::open(family)?;
            let mut peer = RawPeer::new(&mut wire, address)?;
            peer.syn(&wire)?;
            let answer = peer.answer(&mut wire, PATIENCE)?;
            ensure!(
                answer == Some(PeerAnswer::Reset),
                "a SYN for nobody had no reset over {family}"
            );
            wire.settle()
        })
    }

    /// Two handshakes for the last place in the accept queue: the second's last packet is
    /// dropped.
    fn full(&self, probe: &mut Probe, read: &mut Read) -> Result<()> {
        const BACKLOG: usize = 4;
        self.netns.set_sysctl(COOKIES, "0")?;
        let address = self.listener(Family::V4);
        self.netns.run(|| {
            let listener = Listen {
                backlog: BACKLOG as i32,
                ..Listen::default()
            };
            let listener = listener.on(address)?;
            let mut wire = Wire::open(Family::V4)?;
            let mut peers = Vec::new();
            for number in 0..BACKLOG + 2 {
                let mut peer = RawPeer::new(&mut wire, address)?;
                peer.syn(&wire)?;
                let answer = peer.syn_ack(&mut wire, PATIENCE)?;
                ensure!(answer.is_some(), "a SYN had no answer");
                if number < BACKLOG {
                    peer.ack(&wire)?;
                    wire.settle()?;
                }
                peers.push(peer);
            }
            for peer in &peers[BACKLOG..] {
                peer.ack(&wire)?;
            }
            wire.settle()?;
            let _connection = listener.accept().context("cannot accept")?;
            // While the listener is there: what is kept of a queue may go with it.
            read.take_queue(self, probe)?;
            for peer in &peers {
                peer.rst(&wire)?;
            }
            wire.settle()
        })?;
        read.take(&SEEN_FULL, self, probe)
    }

    /// The rule that keeps the last quarter of tcp_max_syn_backlog for known peers.
    fn last_quarter(&self) -> Result<()> {
        const LIMIT: u32 = 4;
        self.netns.set_sysctl(COOKIES, "0")?;
        let usual = self.netns.sysctl(MAX_SYN_BACKLOG)?;
        self.netns.set_sysctl(MAX_SYN_BACKLOG, LIMIT)?;
        let address = self.listener(Family::V4);
        self.netns.run(|| {
            let _listener = Listen::default().on(address)?;
            let mut wire = Wire::open(Family::V4)?;
            let mut peers = Vec::new();
            for _ in 0..=LIMIT {
                let peer = RawPeer::new(&mut wire, address)?;
                peer.syn(&wire)?;
                peers.push(peer);
            }
            wire.settle()?;
            // Half-open requests would outlive the namespace's listener.
            for peer in &peers {
                peer.rst(&wire)?;
            }
            wire.settle()
        })?;
        // The self-test may be made once more.
        self.netns.set_sysctl(MAX_SYN_BACKLOG, usual)
    }
}

impl Faults {
    /// Whether all is well.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty() && self.reasons.is_none()
    }

    fn add(&mut self, hook: Option<&'static Hook>, why: String) {
        // One sentence is enough for a hook.
        let known = hook.is_some()
            && self
                .hooks
                .iter()
                .any(|(other, _)| other.map(|other| other.index) == hook.map(|hook| hook.index));
        if !known {
            self.hooks.push((hook, why));
        }
    }
}

/// An outcome that a step of the self-test has, and the hook that must have read it. Those that
/// move a counter are counted whatever outcomes are wanted, the others if they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Expected {
    outcome: u8,
    hook: usize,
}

const fn expected(outcome: u8, hook: usize) -> Expected {
    Expected { outcome, hook }
}

const SEEN_V4: [Expected; 3] = [
    expected(outcome::COOKIE_SENT_ALWAYS, hook::SYN_V4),
    expected(outcome::ESTABLISHED_COOKIE, hook::COOKIE_V4),
    expected(outcome::SYN_REFUSED_NO_LISTENER, hook::RESET_V4),
];
const SEEN_V6: [Expected; 3] = [
    expected(outcome::COOKIE_SENT_ALWAYS, hook::SYN_V6),
    expected(outcome::ESTABLISHED_COOKIE, hook::COOKIE_V6),
    expected(outcome::SYN_REFUSED_NO_LISTENER, hook::RESET_V6),
];
const SEEN_FULL: [Expected; 1] = [expected(outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL, hook::ACK)];
const SEEN_LAST_QUARTER: [Expected; 1] =
    [expected(outcome::SYN_DROPPED_LAST_QUARTER, hook::PROVEN)];

impl Expected {
    /// Whether the plan promises to tell it, by this hook or without hooks.
    fn is_promised(self, plan: &Plan) -> bool {
        plan.observable & OUTCOMES[usize::from(self.outcome)].bit() != 0
            && (self.hook(plan).is_some()
                || self.is_told_by_reason(plan)
                || plan.family == HookFamily::Tracepoint)
    }

    /// Whether the kernel's reason for freeing the packet tells it.
    fn is_told_by_reason(self, plan: &Plan) -> bool {
        plan.reasons & OUTCOMES[usize::from(self.outcome)].bit() != 0
    }

    /// The hook that is to tell it, if one is attached for it.
    fn hook(self, plan: &Plan) -> Option<&'static Hook> {
        let mut attached = plan.hooks.iter();
        attached.find(|hook| hook.index == self.hook).copied()
    }

    fn sentence(self, plan: &Plan) -> String {
        let who = self
            .hook(plan)
            .map_or("the tracepoints", |hook| hook.function);
        let outcome = Name(&OUTCOMES[usize::from(self.outcome)]);
        format!(
            "what was read at {who} was not the self-test's own handshake ({outcome} is missing)"
        )
    }
}

/// What the kernel side read of the self-test.
#[derive(Debug, Default)]
struct Read {
    /// Counts of the namespace and port so far, by outcome.
    counts: HashMap<u8, u64>,
    missing: Vec<Expected>,
    /// Hooks that keep the queues and did not keep this one.
    not_kept: Vec<usize>,
}

impl Read {
    /// Looks whether what is expected was counted since the last look, at this port of this
    /// namespace.
    fn take(&mut self, expected: &[Expected], stage: &SelfTest, probe: &mut Probe) -> Result<()> {
        let mut now: HashMap<u8, u64> = HashMap::new();
        for (key, counted) in probe.counts()? {
            if key.netns == stage.netns.id() && key.port == stage.port {
                *now.entry(key.outcome).or_default() += counted.seen;
            }
        }
        for one in expected {
            let count = |counts: &HashMap<u8, u64>| counts.get(&one.outcome).copied();
            if count(&now) <= count(&self.counts) {
                self.missing.push(*one);
            }
        }
        self.counts = now;
        Ok(())
    }

    /// Looks whether a listener at this port of this namespace, and a connection that entered
    /// and left its accept queue, were noted.
    fn take_queue(&mut self, stage: &SelfTest, probe: &Probe) -> Result<()> {
        let kept = probe.kept()?;
        let ours = kept.listeners.iter().filter(|(_, (queue, _))| {
            queue.netns == stage.netns.id() && queue.port == stage.port && queue.closed_ns == 0
        });
        let mut kept = [
            (hook::LISTEN, false),
            (hook::QUEUE_ADD, false),
            (hook::ACCEPT, false),
        ];
        for (_, (queue, marks)) in ours {
            kept[0].1 |= queue.made_ns != 0;
            kept[1].1 |= marks.entered != 0;
            kept[2].1 |= marks.waited.iter().any(|count| *count != 0);
        }
        let missed = kept.into_iter().filter(|(_, seen)| !seen);
        self.not_kept.extend(missed.map(|(hook, _)| hook));
        Ok(())
    }

    /// Hooks of the plan that did not note this queue.
    fn not_kept(&self, plan: &Plan) -> Vec<&'static Hook> {
        let hooks = plan.hooks.iter().copied();
        hooks
            .filter(|hook| self.not_kept.contains(&hook.index))
            .collect()
    }

    /// What the plan promises and was not read.
    fn missing(&self, plan: &Plan) -> Vec<Expected> {
        let missing = self.missing.iter().copied();
        missing.filter(|one| one.is_promised(plan)).collect()
    }
}

fn networks(texts: [&str; 2]) -> Result<Vec<IpNet>> {
    let networks = texts.iter().map(|text| Ok(text.parse::<IpNet>()?));
    networks.collect()
}

/// How often each program ran.
fn runs(probe: &Probe) -> Result<impl Iterator<Item = (String, u64)>> {
    let runs = probe.runs()?.into_iter();
    let runs = runs.filter(|program| program.is_attached);
    Ok(runs.map(|program| (program.name, program.runs)))
}

/// The hook of a program, by its name.
fn hook_of(program: &str) -> Option<&'static Hook> {
    HOOKS.iter().find(|hook| {
        program
            .strip_prefix(hook.name)
            .is_some_and(|rest| rest.starts_with("_enter") || rest.starts_with("_exit"))
    })
}
