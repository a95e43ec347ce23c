//! SYN cookies made past TCP, as a BPF program in front of it does that answers SYNs in its
//! place.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};

use crate::bpf;

/// Makes so many SYN cookies for clients of a listener in the calling thread's namespace,
/// of whom no packet ever reaches TCP. The kernel counts that the SYN queue was full, and
/// nothing else (`tcp_get_syncookie_mss`, net/ipv4/tcp_input.c).
///
/// # Errors
/// If the kernel does not let a BPF program do so, or there is no such listener.
pub fn make_cookies(listener: SocketAddrV4, count: u32) -> Result<()> {
    const LOOK_UP_SOCKET: u32 = 84;
    const RELEASE_SOCKET: u32 = 86;
    const MAKE_COOKIE: u32 = 110;
    const SYN: u8 = 1 << 1;
    let word = i32::from_ne_bytes;
    let [high, low] = listener.port().to_be_bytes();
    let (client, server) = (word([198, 51, 100, 1]), word(listener.ip().octets()));
    let ports = word([0xee, 0x48, high, low]);
    let ip = [
        word([0x45, 0, 0, 40]),
        0,
        word([64, 6, 0, 0]),
        client,
        server,
    ];
    let tcp = [ports, 1, 0, word([5 << 4, SYN, 0xff, 0xff]), 0];
    let store = |at: i32, words: &[i32]| -> String {
        let places = (at..).step_by(4);
        let store = |(at, word): (i32, &i32)| format!("stw [r10-{}], {word}\n", -at);
        places.zip(words).map(store).collect()
    };
    let code = format!(
        "mov r6, r1
        {pair}{ip}{tcp}
        mov r1, r6
        mov r2, r10
        add r2, -16
        mov r3, 12
        mov r4, -1
        mov r5, 0
        call {LOOK_UP_SOCKET}
        jne r0, 0, +2
        mov r0, 1
        exit
        mov r7, r0
        mov r1, r7
        mov r2, r10
        add r2, -40
        mov r3, 20
        mov r4, r10
        add r4, -64
        mov r5, 20
        call {MAKE_COOKIE}
        mov r8, r0
        mov r1, r7
        call {RELEASE_SOCKET}
        mov r0, 0
        jsge r8, 0, +1
        mov r0, 2
        exit",
        pair = store(-16, &[client, server, ports]),
        ip = store(-40, &ip),
        tcp = store(-64, &tcp),
    );
    let returned = bpf::run_classifier(&code, count)?;
    ensure!(returned != 1, "there is no listener at {listener}");
    ensure!(returned == 0, "the kernel made no cookie for {listener}");
    Ok(())
}
