//! The registry of metrics: one row for each, from which the exposition, OTLP,
//! docs/metrics.md and the dashboards follow. A name without unit and suffix stands in the
//! row, as both follow from its unit and its type.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, from when the agent attached.
    Counter,
    /// A value of a moment.
    Gauge,
    /// A gauge whose values make sense when added up.
    UpDown,
    /// Times in buckets.
    Histogram,
    /// Always 1: what it says is in its labels.
    Info,
}

impl MetricKind {
    /// The type as Prometheus names it.
    #[must_use]
    pub const fn prometheus(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::UpDown | Self::Info => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What a series of a metric stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A listener: it has the labels of [`super::labels`].
    Listener,
    /// The whole machine.
    Host,
    /// The agent itself.
    Agent,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The place in [`METRICS`].
    pub index: usize,
    /// The name in Prometheus, without unit and suffix.
    pub base: &'static str,
    /// The name in OpenTelemetry; empty: it is not sent.
    pub otel: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// The unit as OpenTelemetry writes it.
    pub unit: &'static str,
    /// What its series stand for.
    pub scope: Scope,
    /// Its labels, beside those of a listener.
    pub labels: &'static [&'static str],
    /// What it counts or measures, in one sentence.
    pub help: &'static str,
}

impl Metric {
    /// The unit in the name in Prometheus.
    #[must_use]
    pub fn unit_word(&self) -> Option<&'static str> {
        match self.unit {
            "s" => Some("seconds"),
            "By" => Some("bytes"),
            _ => None,
        }
    }

    /// The name in Prometheus.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = self.base.to_owned();
        if let Some(unit) = self.unit_word() {
            name.push('_');
            name.push_str(unit);
        }
        match self.kind {
            MetricKind::Counter => name.push_str("_total"),
            MetricKind::Info => name.push_str("_info"),
            MetricKind::Gauge | MetricKind::UpDown | MetricKind::Histogram => {}
        }
        name
    }
}

macro_rules! metrics {
    ($($konst:ident $kind:ident $scope:ident $base:literal $otel:literal $unit:literal [$($label:literal),*] $help:literal;)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the constants")]
        enum Index { $($konst,)* COUNT }
        /// How many metrics there are.
        pub const COUNT: usize = Index::COUNT as usize;
        /// Every metric, at its index.
        pub static METRICS: [Metric; COUNT] = [
            $(Metric {
                index: Index::$konst as usize,
                base: $base,
                otel: $otel,
                kind: MetricKind::$kind,
                unit: $unit,
                scope: Scope::$scope,
                labels: &[$($label),*],
                help: $help,
            },)*
        ];
        $(
            #[doc = concat!("Index: ", $help)]
            pub const $konst: usize = Index::$konst as usize;
        )*
    };
}

metrics! {
    OUTCOMES Counter Listener "queue_trace_outcomes" "queue_trace.outcomes" "{event}" ["verdict", "cause"]
        "Packets and connections by what the kernel did with them and why; exact.";
    CONNECTIONS UpDown Listener "queue_trace_accept_queue_connections" "queue_trace.accept_queue.connections" "{connection}" []
        "Connections in the accept queue that nobody has accepted yet.";
    LIMIT Gauge Listener "queue_trace_accept_queue_limit" "queue_trace.accept_queue.limit" "{connection}" []
        "The backlog in force; the queue is full when it holds more connections than this. Of several sockets, the limit of the fullest.";
    PEAK Gauge Listener "queue_trace_accept_queue_peak" "queue_trace.accept_queue.peak" "{connection}" []
        "The deepest accept queue that was seen in the last 60 seconds; of several sockets, that of the fullest.";
    FULL Counter Listener "queue_trace_accept_queue_full" "queue_trace.accept_queue.full" "s" []
        "Time that the accept queue was full.";
    FILLS Counter Listener "queue_trace_accept_queue_fills" "queue_trace.accept_queue.fills" "{fill}" []
        "How often the accept queue became full.";
    WAIT Histogram Listener "queue_trace_accept_wait" "queue_trace.accept.wait" "s" []
        "Time that connections waited in the accept queue until accept() took them.";
    OLDEST Gauge Listener "queue_trace_oldest_waiting" "queue_trace.oldest_waiting" "s" []
        "Age of the oldest connection in the accept queue.";
    SYN_REQUESTS UpDown Listener "queue_trace_syn_queue_requests" "queue_trace.syn_queue.requests" "{request}" []
        "Half-open requests in the SYN queue.";
    SOCKETS UpDown Listener "queue_trace_listener_sockets" "queue_trace.listener.sockets" "{socket}" []
        "Listening sockets behind this series: more than one with SO_REUSEPORT, or where labels put listeners together.";
    FULL_SOCKETS UpDown Listener "queue_trace_listener_full_sockets" "queue_trace.listener.full_sockets" "{socket}" []
        "How many of these sockets have a full accept queue.";
    LISTENER_INFO Info Listener "queue_trace_listener" "queue_trace.listener.info" "" ["limit_from", "default_of", "k8s_pod_uid", "container_id"]
        "What changes often or is long, to be joined: what set the limit, whose default it is, the container.";
    FINDING Gauge Listener "queue_trace_finding" "queue_trace.finding" "" ["rule"]
        "Whether this rule of the diagnosis finds something wrong with the listener now.";
    HOST_OUTCOMES Counter Host "queue_trace_host_outcomes" "queue_trace.host.outcomes" "{event}" ["verdict", "cause"]
        "The same as queue_trace_outcomes_total over all listeners, those without a series of their own and those that are gone as well.";
    KERNEL_EVENTS Counter Host "queue_trace_kernel_events" "queue_trace.kernel_events" "{event}" ["counter"]
        "How far the kernel's own counter moved in all network namespaces: the left side of the ledger.";
    EXPLAINED_EVENTS Counter Host "queue_trace_explained_events" "queue_trace.explained_events" "{event}" ["counter"]
        "How far the verdicts explain that counter: the right side of the ledger.";
    UNEXPLAINED Gauge Host "queue_trace_unexplained_events" "queue_trace.unexplained_events" "{event}" []
        "Movements of the kernel's counters that no verdict explains. Not 0: do not trust the other numbers.";
    OBSERVABLE Gauge Host "queue_trace_observable" "queue_trace.observable" "" ["verdict", "cause"]
        "Whether this outcome can be seen on this machine: where it is 0, absence is not zero.";
    LISTENERS Gauge Host "queue_trace_listeners" "queue_trace.listeners" "{listener}" ["state"]
        "Listening sockets by where they are counted: exported, ephemeral (port folded), young, or overflow.";
    EPISODES Gauge Host "queue_trace_episodes" "queue_trace.episodes" "{episode}" []
        "Listeners that refuse connections now, or did a few seconds ago.";
    LOSS Counter Agent "queue_trace_loss" "queue_trace.loss" "{loss}" ["kind"]
        "What the agent lost on the way, by kind.";
    INCIDENTS Counter Agent "queue_trace_incidents" "queue_trace.incidents" "{incident}" ["result"]
        "Incident recordings: written, or left out because of the limit for a day or an error.";
    OTLP_REQUESTS Counter Agent "queue_trace_otlp_requests" "" "{request}" ["signal", "result"]
        "Requests to the OTLP endpoint by result: accepted, retried, or dropped.";
    LOOK Gauge Agent "queue_trace_look_duration" "queue_trace.look_duration" "s" []
        "How long the last look at all listeners took.";
    ATTACH_INFO Info Agent "queue_trace_attach" "queue_trace.attach.info" "" ["family", "hooks", "kernel", "self_test"]
        "How the agent is attached to the kernel, and whether the self-test passed.";
    BUILD_INFO Info Agent "queue_trace_build" "queue_trace.build.info" "" ["version"]
        "The version of the agent.";
    CPU Counter Agent "process_cpu" "process.cpu.time" "s" []
        "CPU time of the agent, user and system.";
    RESIDENT Gauge Agent "process_resident_memory" "process.memory.usage" "By" []
        "Resident memory of the agent.";
    OPEN_FDS Gauge Agent "process_open_fds" "process.unix.file_descriptor.count" "{file_descriptor}" []
        "Open file descriptors of the agent.";
    MAX_FDS Gauge Agent "process_max_fds" "" "{file_descriptor}" []
        "How many file descriptors the agent may open.";
    START_TIME Gauge Agent "process_start_time" "" "s" []
        "When the agent started, seconds since 1970.";
}

/// Outcomes that every exported listener has from the beginning, so that `increase()` sees
/// the first of them.
pub const FROM_ZERO: [u8; 4] = [
    queue_trace_common::outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
    queue_trace_common::outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
    queue_trace_common::outcome::SYN_DROPPED_SYN_QUEUE_FULL,
    queue_trace_common::outcome::COOKIE_SENT_FULL,
];

/// The ends of the buckets of times, as powers of two of a microsecond: every second one of
/// the kernel side's own, so nothing is interpolated.
pub const BOUNDS: [u32; 10] = [6, 8, 10, 12, 14, 16, 18, 20, 22, 24];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let names: BTreeSet<_> = METRICS.iter().map(Metric::name).collect();
        assert_eq!(names.len(), COUNT);
        for metric in &METRICS {
            let word = |text: &str| {
                !text.is_empty()
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b))
            };
            assert!(word(metric.base), "{}", metric.base);
            assert!(
                metric.labels.iter().all(|label| word(label)),
                "{}",
                metric.base
            );
            assert!(metric.help.ends_with('.'), "{}", metric.base);
            // Prometheus-client adds these itself.
            assert!(!metric.base.ends_with("_total") && !metric.base.ends_with("_info"));
        }
    }

    /// A collector translates the OpenTelemetry name to the one that Prometheus scrapes.
    #[test]
    fn both_ways_lead_to_the_same_name() {
        for metric in METRICS
            .iter()
            .filter(|metric| metric.otel.starts_with("queue_trace"))
        {
            let mut translated = metric.otel.replace('.', "_");
            if let Some(unit) = metric.unit_word()
                && !translated.ends_with(unit)
            {
                translated = format!("{translated}_{unit}");
            }
            if metric.kind == MetricKind::Counter {
                translated.push_str("_total");
            }
            assert_eq!(translated, metric.name());
        }
    }
}
