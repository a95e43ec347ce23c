//! Sums stay exact, and the number of series bounded, whatever comes and goes.

use std::path::Path;

use queue_trace_common::outcome::{ACCEPTED, COOKIE_SENT_FULL, SYN_DROPPED_ACCEPT_QUEUE_FULL};

use super::*;
use crate::{
    agent::exposition::Point,
    model::{
        snapshot::{Gauge, Snapshot},
        socket::Process,
    },
};

fn fleet(listeners: usize, labels: &str) -> Fleet {
    let limits = Limits {
        allowed: labels.parse().unwrap(),
        ephemeral: Ephemeral::of(32768..=60999),
        listeners,
    };
    Fleet::new(limits, PodNames::new(Path::new("/nonexistent")))
}

fn listener(port: u16, inode: u64) -> Listener {
    Listener {
        addr: Some([0, 0, 0, 0].into()),
        port,
        cookie: None,
        inode: Some(inode),
        device: None,
    }
}

fn seen(port: u16, inode: u64, comm: &str) -> Snapshot {
    Snapshot {
        netns: 1,
        listener: listener(port, inode),
        processes: Some(vec![Process {
            pid: 7,
            comm: comm.to_owned(),
        }]),
        accept_queue: Some(Gauge {
            depth: Some(2),
            limit: Some(4),
            full_us: Some(0),
            full_times: Some(0),
            ..Gauge::default()
        }),
        waits: Some([0; BUCKETS]),
        waited_sum_ns: Some(0),
        ..Snapshot::default()
    }
}

fn at(second: u64) -> Duration {
    Duration::from_secs(second)
}

fn told(fleet: &Fleet) -> Exposition {
    let mut exposition = Exposition::new(0, 0);
    fleet.tell(&mut exposition);
    exposition
}

fn has(point: &Point, labels: &[(&str, &str)]) -> bool {
    let all = || {
        let whose = point.whose.iter().flat_map(|whose| &whose.words);
        whose.chain(&point.labels)
    };
    labels
        .iter()
        .all(|(name, value)| all().any(|(n, v)| n == name && v == value))
}

/// The sum of the points of a metric that have these labels.
fn sum(exposition: &Exposition, metric: usize, labels: &[(&str, &str)]) -> f64 {
    let points = exposition.family(metric).iter();
    let values = points
        .filter(|point| has(point, labels))
        .map(|point| match &point.value {
            Value::Count(count) => *count as f64,
            Value::Measure(measure) => *measure,
            Value::Times { buckets, .. } => buckets.iter().map(|(_, count)| *count as f64).sum(),
        });
    values.sum()
}

fn dropped(count: u64) -> BTreeMap<u8, u64> {
    [(SYN_DROPPED_ACCEPT_QUEUE_FULL, count)].into()
}

#[test]
fn a_restarted_server_goes_on_counting_in_its_series() {
    let mut fleet = fleet(9, "process_executable_name");
    fleet.look(&[seen(80, 1, "nginx")], None, at(0));
    fleet.counts(1, &listener(80, 1), &dropped(3), at(1));
    fleet.look(&[], None, at(2));
    fleet.look(&[seen(80, 2, "nginx")], None, at(3));
    fleet.counts(1, &listener(80, 2), &dropped(4), at(4));
    let told = told(&fleet);
    let labels = [
        ("network_local_port", "80"),
        ("cause", "accept_queue_full"),
        ("verdict", "syn_dropped"),
    ];
    assert_eq!(sum(&told, OUTCOMES, &labels), 7.0);
    assert_eq!(told.family(CONNECTIONS).len(), 1);
}

#[test]
fn every_listener_has_the_main_outcomes_from_zero() {
    let mut fleet = fleet(9, "none");
    fleet.look(&[seen(80, 1, "a")], None, at(0));
    let told = told(&fleet);
    let zero = told
        .family(OUTCOMES)
        .iter()
        .filter(|point| point.value == Value::Count(0));
    assert_eq!(zero.count(), FROM_ZERO.len());
}

#[test]
fn beyond_the_places_all_is_one_series_and_sums_are_exact() {
    let mut fleet = fleet(3, "process_executable_name");
    let many: Vec<_> = (0..50).map(|n| seen(1000 + n, n.into(), "a")).collect();
    fleet.look(&many, None, at(0));
    for n in 0..50u16 {
        fleet.counts(1, &listener(1000 + n, n.into()), &dropped(2), at(1));
    }
    let told = told(&fleet);
    assert_eq!(told.family(CONNECTIONS).len(), 4);
    assert_eq!(sum(&told, OUTCOMES, &[]), 100.0);
    assert_eq!(sum(&told, OUTCOMES, &[("overflow", "true")]), 94.0);
    assert_eq!(sum(&told, CONNECTIONS, &[]), 100.0);
    assert_eq!(sum(&told, SOCKETS, &[("overflow", "true")]), 47.0);
    assert_eq!(sum(&told, LISTENERS, &[("state", "overflow")]), 47.0);
    assert_eq!(fleet.host()[&SYN_DROPPED_ACCEPT_QUEUE_FULL], 100);
}

#[test]
fn those_that_refuse_find_their_place_first() {
    let mut fleet = fleet(1, "none");
    fleet.attached();
    fleet.one(&seen(80, 1, "a"), at(0));
    fleet.one(&seen(81, 2, "a"), at(0));
    assert!(
        told(&fleet)
            .family(CONNECTIONS)
            .iter()
            .all(|point| has(point, &[("overflow", "true")]))
    );
    fleet.counts(1, &listener(81, 2), &dropped(5), at(1));
    fleet.settle(at(40));
    let told = told(&fleet);
    assert_eq!(sum(&told, OUTCOMES, &[("network_local_port", "81")]), 5.0);
    assert_eq!(sum(&told, OUTCOMES, &[("network_local_port", "80")]), 0.0);
    assert_eq!(sum(&told, SOCKETS, &[("overflow", "true")]), 1.0);
}

#[test]
fn a_series_goes_five_minutes_after_its_listener() {
    let mut fleet = fleet(1, "none");
    fleet.look(&[seen(80, 1, "a")], None, at(0));
    fleet.counts(1, &listener(80, 1), &dropped(5), at(1));
    fleet.look(&[seen(81, 2, "a")], None, at(10));
    // What it counted is still there, and its place is not free.
    fleet.settle(at(200));
    assert_eq!(
        sum(&told(&fleet), OUTCOMES, &[("network_local_port", "80")]),
        5.0
    );
    assert!(
        told(&fleet)
            .family(LIMIT)
            .iter()
            .all(|point| !has(point, &[("network_local_port", "80")]))
    );
    fleet.settle(at(311));
    fleet.settle(at(312));
    let told = told(&fleet);
    assert_eq!(sum(&told, OUTCOMES, &[("network_local_port", "80")]), 0.0);
    assert_eq!(sum(&told, SOCKETS, &[("network_local_port", "81")]), 1.0);
    assert_eq!(fleet.host()[&SYN_DROPPED_ACCEPT_QUEUE_FULL], 5);
}

#[test]
fn ephemeral_ports_of_one_owner_are_one_series() {
    let mut fleet = fleet(9, "process_executable_name");
    let many: Vec<_> = (0..20).map(|n| seen(40000 + n, n.into(), "java")).collect();
    fleet.look(&many, None, at(0));
    let told = told(&fleet);
    assert_eq!(told.family(CONNECTIONS).len(), 1);
    assert_eq!(
        sum(&told, CONNECTIONS, &[("network_local_port", "ephemeral")]),
        40.0
    );
    assert_eq!(sum(&told, LISTENERS, &[("state", "ephemeral")]), 20.0);
}

#[test]
fn a_label_that_is_left_out_is_summed_over() {
    let mut fleet = fleet(9, "none");
    fleet.look(&[seen(80, 1, "a"), seen(80, 2, "b")], None, at(0));
    fleet.counts(1, &listener(80, 1), &dropped(5), at(1));
    fleet.counts(1, &listener(80, 2), &dropped(6), at(1));
    let told = told(&fleet);
    assert_eq!(
        sum(
            &told,
            OUTCOMES,
            &[
                ("network_local_port", "80"),
                ("cause", "accept_queue_full"),
                ("verdict", "syn_dropped")
            ]
        ),
        11.0
    );
    assert_eq!(told.family(SOCKETS).len(), 1);
}

#[test]
fn what_the_kernel_counted_is_added_once_and_over_restarts() {
    let mut fleet = fleet(9, "none");
    let mut one = seen(80, 1, "a");
    fleet.look(std::slice::from_ref(&one), None, at(0));
    let mut waits = [0; BUCKETS];
    (waits[0], waits[6], waits[7], waits[31]) = (1, 2, 3, 4);
    one.waits = Some(waits);
    one.waited_sum_ns = Some(5_000_000_000);
    if let Some(queue) = &mut one.accept_queue {
        (queue.full_us, queue.full_times) = (Some(2_500_000), Some(3));
    }
    fleet.look(std::slice::from_ref(&one), None, at(1));
    fleet.look(std::slice::from_ref(&one), None, at(2));
    // Its last words, and its successor, which begins at zero.
    waits[6] += 1;
    one.waits = Some(waits);
    one.closed = Some(true);
    fleet.one(&one, at(3));
    fleet.look(&[seen(80, 2, "a")], None, at(4));
    let told = told(&fleet);
    assert_eq!(sum(&told, FULL, &[]), 2.5);
    assert_eq!(sum(&told, FILLS, &[]), 3.0);
    let [point] = told.family(WAIT) else {
        panic!("{:?}", told.family(WAIT));
    };
    let Value::Times { buckets, sum } = &point.value else {
        panic!("{point:?}");
    };
    assert_eq!(*sum, 5.0);
    assert_eq!(buckets[0], (0.000_064, 4));
    assert_eq!(buckets[1], (0.000_256, 3));
    assert_eq!(buckets[10], (f64::INFINITY, 4));
}

#[test]
fn limit_and_peak_are_those_of_the_fullest() {
    let mut fleet = fleet(9, "none");
    let mut small = seen(80, 1, "a");
    if let Some(queue) = &mut small.accept_queue {
        (queue.depth, queue.limit) = (Some(3), Some(2));
    }
    let mut large = seen(80, 2, "a");
    if let Some(queue) = &mut large.accept_queue {
        (queue.depth, queue.limit) = (Some(50), Some(4096));
    }
    fleet.look(&[small, large], None, at(0));
    fleet.depth(1, &listener(80, 1), 3);
    let told = told(&fleet);
    assert_eq!((sum(&told, LIMIT, &[]), sum(&told, PEAK, &[])), (2.0, 3.0));
    assert_eq!(
        (sum(&told, CONNECTIONS, &[]), sum(&told, FULL_SOCKETS, &[])),
        (53.0, 1.0)
    );
}

#[test]
fn the_peak_is_that_of_the_last_minute() {
    let mut fleet = fleet(9, "none");
    let one = [seen(80, 1, "a")];
    fleet.look(&one, None, at(0));
    fleet.depth(1, &listener(80, 1), 5);
    fleet.look(&one, None, at(40));
    assert_eq!(sum(&told(&fleet), PEAK, &[]), 5.0);
    fleet.look(&one, None, at(80));
    fleet.look(&one, None, at(120));
    assert_eq!(sum(&told(&fleet), PEAK, &[]), 2.0);
}

#[test]
fn an_age_that_is_not_known_is_not_zero() {
    let mut fleet = fleet(9, "none");
    let mut one = seen(80, 1, "a");
    fleet.look(std::slice::from_ref(&one), None, at(0));
    assert!(told(&fleet).family(OLDEST).is_empty());
    one.oldest_waiting_us = Some(1_500_000);
    fleet.look(std::slice::from_ref(&one), None, at(1));
    assert_eq!(sum(&told(&fleet), OLDEST, &[]), 1.5);
}

#[test]
fn counts_wait_for_a_look_at_their_listener_and_are_never_lost() {
    let mut fleet = fleet(9, "process_executable_name");
    fleet.counts(1, &listener(80, 1), &dropped(5), at(0));
    assert!(fleet.unknown().next().is_some());
    fleet.look(&[seen(80, 1, "a")], None, at(1));
    assert_eq!(fleet.unknown().next(), None);
    assert_eq!(
        sum(&told(&fleet), OUTCOMES, &[("process_executable_name", "a")]),
        5.0
    );
    // One that nobody finds.
    fleet.counts(1, &listener(81, 9), &[(COOKIE_SENT_FULL, 7)].into(), at(2));
    fleet.settle(at(4));
    fleet.settle(at(6));
    assert_eq!(fleet.unknown().next(), None);
    assert_eq!(sum(&told(&fleet), OUTCOMES, &[("overflow", "true")]), 7.0);
}

#[test]
fn counts_of_a_group_without_a_socket_go_to_the_group() {
    let mut fleet = fleet(9, "none");
    fleet.look(&[seen(80, 1, "a"), seen(80, 2, "a")], None, at(0));
    let unknown = Listener {
        inode: None,
        ..listener(80, 0)
    };
    fleet.counts(1, &unknown, &dropped(5), at(1));
    assert_eq!(
        sum(&told(&fleet), OUTCOMES, &[("network_local_port", "80")]),
        5.0
    );
}

/// Other limits: no series with the labels of before is left.
#[test]
fn other_labels_are_in_force_at_the_next_look() {
    let mut fleet = fleet(9, "process_executable_name");
    let one = [seen(80, 1, "a")];
    fleet.look(&one, None, at(0));
    fleet.limit(Limits {
        allowed: "none".parse().unwrap(),
        ephemeral: Ephemeral::none(),
        listeners: 9,
    });
    fleet.settle(at(1));
    fleet.look(&one, None, at(2));
    let told = told(&fleet);
    assert_eq!(told.family(SOCKETS).len(), 1);
    assert_eq!(
        told.family(SOCKETS)
            .iter()
            .filter(|point| has(point, &[("process_executable_name", "a")]))
            .count(),
        0
    );
}

#[test]
fn findings_come_and_go() {
    let mut fleet = fleet(9, "none");
    fleet.look(&[seen(80, 1, "a")], None, at(0));
    assert!(told(&fleet).family(FINDING).is_empty());
    fleet.findings(&[((1, 80, Some(1)), "accept-too-slow")]);
    assert_eq!(
        sum(&told(&fleet), FINDING, &[("rule", "accept-too-slow")]),
        1.0
    );
    fleet.findings(&[]);
    assert_eq!(told(&fleet).family(FINDING).len(), 1);
    assert_eq!(sum(&told(&fleet), FINDING, &[]), 0.0);
}

/// A hundred thousand listeners come and go; memory and series do not grow.
#[test]
fn churn_leaves_nothing_behind() {
    let mut fleet = fleet(16, "process_executable_name");
    let mut expected = 0;
    for round in 0..1000u64 {
        let now = at(round * 10);
        let listeners: Vec<_> = (0..100)
            .map(|n| {
                let inode = round * 100 + n;
                let port = 1000 + (inode % 20_000) as u16;
                seen(port, inode, "churn")
            })
            .collect();
        fleet.look(&listeners, None, now);
        for one in &listeners {
            fleet.counts(1, &one.listener, &[(ACCEPTED, 1)].into(), now);
            expected += 1;
        }
        assert!(fleet.series.len() <= 16 && fleet.sockets.len() <= 100);
    }
    assert_eq!(fleet.host()[&ACCEPTED], expected);
}
