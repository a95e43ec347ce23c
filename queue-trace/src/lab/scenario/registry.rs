//! The cases, each declared once.
//!
//! Two rules of the kernel shape the numbers. An accept queue holds one connection
//! more than its backlog. A SYN queue holds as many requests as the backlog, or one
//! more, depending on the kernel; so where it is to be full the requests are
//! counted, and where it is not they stay under the backlog.

use std::time::Duration;

use anyhow::{Result, ensure};
use queue_trace_common::outcome;

use crate::lab::{
    Ending, Pace,
    raw::RawPeer,
    scenario::{stage::Scenario, traffic::Traffic},
};

const COOKIES: &str = "net.ipv4.tcp_syncookies";
const MAX_SYN_BACKLOG: &str = "net.ipv4.tcp_max_syn_backlog";
const ABORT: &str = "net.ipv4.tcp_abort_on_overflow";

/// For clients that are to be refused: under the second after which they would
/// send their SYN again.
const REFUSED: Duration = Duration::from_millis(600);
/// For clients that are to be connected.
const CONNECTED: Duration = Duration::from_secs(3);

const CLIENTS: u32 = 100;
const FLOOD: u32 = 500;
const DATA: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// All cases.
pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "accept-overflow",
        about: "Nobody accepts: the accept queue fills, and SYNs are dropped for it",
        backlog: 10,
        sysctls: &[],
        play: accept_overflow,
    },
    Scenario {
        name: "ack-overflow",
        about: "The accept queue fills between SYN and ACK: clients believe they are connected",
        backlog: 5,
        sysctls: &[(COOKIES, "0")],
        play: ack_overflow,
    },
    Scenario {
        name: "abort-on-overflow",
        about: "The same with tcp_abort_on_overflow=1: those clients are reset",
        backlog: 5,
        sysctls: &[(COOKIES, "0"), (ABORT, "1")],
        play: abort_on_overflow,
    },
    Scenario {
        name: "syn-flood",
        about: "A SYN flood without cookies: the SYN queue is full, and SYNs are dropped",
        backlog: 16,
        sysctls: &[(COOKIES, "0"), (MAX_SYN_BACKLOG, "4096")],
        play: syn_flood,
    },
    Scenario {
        name: "last-quarter",
        about: "Without cookies the last quarter of tcp_max_syn_backlog is kept for known peers",
        backlog: 128,
        sysctls: &[(COOKIES, "0"), (MAX_SYN_BACKLOG, "64")],
        play: last_quarter,
    },
    Scenario {
        name: "cookies",
        about: "A SYN flood with cookies: they are sent, some come back, some are forged",
        backlog: 16,
        sysctls: &[(COOKIES, "1")],
        play: cookies,
    },
    Scenario {
        name: "cookies-always",
        about: "With tcp_syncookies=2 every handshake goes by cookie, full queue or not",
        backlog: 128,
        sysctls: &[(COOKIES, "2")],
        play: cookies_always,
    },
    Scenario {
        name: "cookie-dropped",
        about: "Valid cookies come back to a full accept queue, and are refused all the same",
        backlog: 2,
        sysctls: &[(COOKIES, "2")],
        play: cookie_dropped,
    },
];

fn accept_overflow(traffic: &mut Traffic) -> Result<String> {
    let fit = traffic.accept_capacity();
    let refused = CLIENTS - fit;
    traffic.clients(fit, Pace::OneByOne, CONNECTED, Ending::Connected)?;
    traffic.clients(refused, Pace::AllAtOnce, REFUSED, Ending::TimedOut)?;
    traffic.impose(fit, outcome::QUEUED);
    traffic.impose(fit, outcome::ESTABLISHED_HANDSHAKE);
    traffic.impose(refused, outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL);
    Ok(format!(
        "{CLIENTS} clients connected to a listener of backlog {} that never accepts: \
         {fit} got in, the SYNs of {refused} were dropped",
        traffic.backlog
    ))
}

fn ack_overflow(traffic: &mut Traffic) -> Result<String> {
    let (fit, late) = overflow_between_syn_and_ack(traffic)?;
    traffic.finish_handshakes(&late, DATA)?;
    traffic.impose(late.len() as u32, outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL);
    Ok(format!(
        "{} clients finished their handshakes with a listener of backlog {} that never accepts: \
         {fit} got in, {} believe it wrongly",
        fit as usize + late.len(),
        traffic.backlog,
        late.len()
    ))
}

fn abort_on_overflow(traffic: &mut Traffic) -> Result<String> {
    let (fit, mut late) = overflow_between_syn_and_ack(traffic)?;
    traffic.finish_and_be_reset(&mut late, DATA)?;
    traffic.impose(
        late.len() as u32,
        outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    );
    Ok(format!(
        "{} clients finished their handshakes with a listener of backlog {} that never accepts: \
         {fit} got in, {} were reset",
        fit as usize + late.len(),
        traffic.backlog,
        late.len()
    ))
}

/// Two rounds of as many peers as the backlog, so that neither round's SYNs fill
/// the SYN queue of any kernel: the first round leaves one place in the accept
/// queue, all of the second are let into the SYN queue for it, one gets it.
/// Returns how many got in, and the peers who still have to send their ACK.
fn overflow_between_syn_and_ack(traffic: &mut Traffic) -> Result<(u32, Vec<RawPeer>)> {
    let round = traffic.backlog;
    let first = traffic.peers_with_syn_ack(round)?;
    traffic.finish_handshakes(&first, DATA)?;
    let mut second = traffic.peers_with_syn_ack(round)?;
    let late = second.split_off((traffic.accept_capacity() - round) as usize);
    traffic.finish_handshakes(&second, DATA)?;
    let fit = traffic.accept_capacity();
    traffic.impose(2 * round, outcome::QUEUED);
    traffic.impose(fit, outcome::ESTABLISHED_HANDSHAKE);
    Ok((fit, late))
}

fn syn_flood(traffic: &mut Traffic) -> Result<String> {
    let queued = traffic.flood(FLOOD)?;
    traffic.impose(queued, outcome::QUEUED);
    traffic.impose(FLOOD - queued, outcome::SYN_DROPPED_SYN_QUEUE_FULL);
    Ok(format!(
        "{FLOOD} SYNs from made-up clients at a listener of backlog {}, cookies off: \
         {queued} are half-open, the others were dropped",
        traffic.backlog
    ))
}

fn last_quarter(traffic: &mut Traffic) -> Result<String> {
    let sent = CLIENTS;
    let queued = traffic.flood(sent)?;
    ensure!(
        queued < traffic.backlog,
        "{queued} requests half-open: the SYN queue was full before the last quarter"
    );
    traffic.impose(queued, outcome::QUEUED);
    traffic.impose(sent - queued, outcome::SYN_DROPPED_LAST_QUARTER);
    Ok(format!(
        "{sent} SYNs from made-up clients at a listener of backlog {}, cookies off and \
         tcp_max_syn_backlog 64: {queued} are half-open, the others were dropped",
        traffic.backlog
    ))
}

fn cookies(traffic: &mut Traffic) -> Result<String> {
    const VALID: u32 = 4;
    const FORGED: u32 = 3;
    let queued = traffic.flood(FLOOD)?;
    let peers = traffic.peers_with_syn_ack(VALID)?;
    traffic.finish_handshakes(&peers, DATA)?;
    traffic.bogus_acks(FORGED)?;
    traffic.impose(queued, outcome::QUEUED);
    traffic.impose(FLOOD - queued + VALID, outcome::COOKIE_SENT_FULL);
    traffic.impose(VALID, outcome::ESTABLISHED_COOKIE);
    traffic.impose(FORGED, outcome::COOKIE_FAILED_INVALID);
    Ok(format!(
        "{FLOOD} SYNs from made-up clients at a listener of backlog {}: {queued} are half-open, \
         the others got cookies; {VALID} more clients came in by cookie, {FORGED} forged one",
        traffic.backlog
    ))
}

fn cookies_always(traffic: &mut Traffic) -> Result<String> {
    const REAL: u32 = 20;
    traffic.clients(REAL, Pace::OneByOne, CONNECTED, Ending::Connected)?;
    traffic.impose(REAL, outcome::COOKIE_SENT_ALWAYS);
    traffic.impose(REAL, outcome::ESTABLISHED_COOKIE);
    Ok(format!(
        "{REAL} clients connected under tcp_syncookies=2: all came in by cookie"
    ))
}

fn cookie_dropped(traffic: &mut Traffic) -> Result<String> {
    const PEERS: u32 = 8;
    let fit = traffic.accept_capacity();
    let peers = traffic.peers_with_syn_ack(PEERS)?;
    traffic.finish_handshakes(&peers, DATA)?;
    traffic.impose(PEERS, outcome::COOKIE_SENT_ALWAYS);
    traffic.impose(fit, outcome::ESTABLISHED_COOKIE);
    traffic.impose(PEERS - fit, outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL);
    Ok(format!(
        "{PEERS} clients brought valid cookies to a listener of backlog {} that never accepts: \
         {fit} got in, {} believe it wrongly",
        traffic.backlog,
        PEERS - fit
    ))
}
