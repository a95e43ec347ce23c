//! Floods, real clients beside them, and servers at which nothing is wrong.

use std::{thread, time::Duration};

use live_tests::Counters;
use queue_trace::lab::{
    Family,
    raw::{Flood, Wire, flood},
};

use super::{
    HTTP, Play, all, assert_owner, clients_come, command, diagnosed, found,
    programs::{gunicorn, haproxy, node},
    run_there, text,
};
use crate::{
    diagnose::judges_closing,
    servers::{AT, Server, nginx, redis_where},
};

/// Floods of servers, with nobody else there and beside real clients; and clients alone.
#[test]
fn floods_of_servers() {
    let node = node(
        "require('net').createServer(client => client.end('hello'))
        .listen({ port: 8080, host: '127.0.0.1', backlog: 64 })",
    );
    let nginx_flooded = nginx("flooded-nginx", "backlog=64", 1, "");
    let calm = nginx("calm-nginx", "backlog=64", 1, "");
    const SYNS: u32 = 1500;
    let play = |server: &Server, networks: u32| {
        let send = || {
            let what = Flood {
                networks,
                per_second: Some(1000),
                ..Flood::of(SYNS)
            };
            let flooded = flood(AT, &what)?;
            assert_eq!(flooded.lost, 0, "lo lost packets");
            Wire::open(Family::V4)?.settle()
        };
        server.netns.run(send).unwrap();
    };
    let during = Duration::from_secs(4);
    let alone = |server: &Server| play(server, 1);
    let real = |server: &Server| clients_come(server, Some(HTTP), 10, during);
    let beside = |server: &Server| {
        thread::scope(|scope| {
            scope.spawn(|| real(server));
            play(server, 400);
        });
    };
    let diagnosis = diagnosed(
        "floods-of-servers",
        &[(&node, &alone), (&nginx_flooded, &beside), (&calm, &real)],
    );
    found(&diagnosis, &calm, &[]);
    for (server, rule, comm, workers) in [
        (&node, "syn-flood-few-networks", "node", vec![]),
        (
            &nginx_flooded,
            "syn-flood-many-networks",
            "nginx",
            nginx_flooded.workers(1),
        ),
    ] {
        let findings = found(&diagnosis, server, &[rule]);
        let finding = findings[0];
        assert_owner(finding, comm, &all(server, &workers));
        let counters = Counters::of(&server.netns);
        let cookies = counters.get("SyncookiesSent");
        // The limit is 64, so that all but some of the flood found it full.
        assert!(cookies >= u64::from(SYNS) - 100, "{cookies}");
        assert_eq!(finding["count"], cookies, "{finding:#}");
        let back = counters.get("SyncookiesRecv");
        let came = format!("{back} of {cookies} SYN cookies came back");
        assert!(text(finding, "what").contains(&came), "{came}: {finding:#}");
        // nft takes what is printed, in this namespace alone.
        run_there(server, command(finding, "nft "));
    }
    // Its first remedy is a look at a setting, which real clients needed here.
    let beside = found(&diagnosis, &nginx_flooded, &["syn-flood-many-networks"])[0];
    let cookies = run_there(&nginx_flooded, command(beside, "sysctl "));
    assert_eq!(cookies, "net.ipv4.tcp_syncookies = 1\n");
    assert!(Counters::of(&nginx_flooded.netns).get("SyncookiesRecv") > 0);
}

/// Servers at work, with nothing wrong.
#[test]
fn nothing_wrong() {
    const HELLO: &str = "
def app(environ, start):
    start('204 No Content', [])
    return []
";
    let servers = [
        nginx("well-nginx", "", 2, ""),
        haproxy("well-haproxy", 100, true),
        gunicorn("well-gunicorn", &[], 64, HELLO),
        redis_where("well-redis", &[], None),
    ];
    let during = Duration::from_secs(5);
    let serve = |server: &Server| clients_come(server, Some(HTTP), 5, during);
    let plays = servers
        .each_ref()
        .map(|server| -> Play<'_> { (server, &serve) });
    let diagnosis = diagnosed("well-servers", &plays);
    for server in &servers {
        found(&diagnosis, server, &[]);
    }
    let verdict = match judges_closing(&diagnosis) {
        true => "nothing_found",
        false => "could_not_tell",
    };
    assert_eq!(diagnosis["verdict"], verdict, "{diagnosis:#}");
}
