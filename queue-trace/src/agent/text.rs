//! The exposition as text: OpenMetrics 1.0 or Prometheus' text format 0.0.4, as the
//! scraper asks for.

use std::{collections::BTreeSet, fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet,
        prometheus_text, text,
    },
    metrics::{MetricType, exemplar::Exemplar},
    registry::{Registry, Unit},
};

use super::{
    exposition::{Exposition, Point, Value},
    registry::{METRICS, Metric, MetricKind},
};

/// A form of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own, which every scraper takes.
    Prometheus,
}

impl MetricsFormat {
    /// What an `Accept` header asks for: OpenMetrics where it stands before Prometheus' text
    /// by its weight.
    #[must_use]
    pub fn of_accept(accept: Option<&str>) -> Self {
        let mut best = (0.0, Self::Prometheus);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let form = match parts.next() {
                Some("application/openmetrics-text") => Self::OpenMetrics,
                Some("text/plain") => Self::Prometheus,
                _ => continue,
            };
            let mut weight = 1.0;
            let mut known = true;
            for part in parts {
                match part.split_once('=') {
                    Some(("q", q)) => weight = q.parse().unwrap_or(0.0),
                    Some(("version", version)) => {
                        known = matches!(
                            (form, version),
                            (Self::OpenMetrics, "1.0.0" | "0.0.1") | (Self::Prometheus, "0.0.4")
                        );
                    }
                    _ => {}
                }
            }
            if known && weight > best.0 {
                best = (weight, form);
            }
        }
        best.1
    }

    /// The `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }

    /// The text of an exposition.
    ///
    /// # Errors
    /// If it cannot be formatted, which a string does not do.
    pub fn write(self, exposition: Arc<Exposition>) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ExpositionCollector(exposition)));
        let mut out = String::new();
        match self {
            Self::OpenMetrics => text::encode(&mut out, &registry)?,
            Self::Prometheus => prometheus_text::encode(&mut out, &registry)?,
        }
        Ok(out)
    }
}

#[derive(Debug)]
struct ExpositionCollector(Arc<Exposition>);

impl Collector for ExpositionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in &METRICS {
            let points = self.0.family(metric.index);
            if points.is_empty() {
                continue;
            }
            let unit = metric.unit_word().map(|word| Unit::Other(word.to_owned()));
            let kind = match metric.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge | MetricKind::UpDown => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
                MetricKind::Info => MetricType::Info,
            };
            let mut family =
                encoder.encode_descriptor(metric.base, metric.help, unit.as_ref(), kind)?;
            for point in points {
                encode(&mut family, metric, point)?;
            }
        }
        Ok(())
    }
}

fn encode(family: &mut MetricEncoder<'_>, metric: &Metric, point: &Point) -> fmt::Result {
    let labels = Labels(point);
    if metric.kind == MetricKind::Info {
        return family.encode_info(&labels);
    }
    let none: Option<&Exemplar<NoLabelSet, f64>> = None;
    let mut series = family.encode_family(&labels)?;
    match (&point.value, metric.kind) {
        (Value::Count(count), MetricKind::Counter) => series.encode_counter(count, none),
        (Value::Measure(measure), MetricKind::Counter) => series.encode_counter(measure, none),
        (Value::Count(count), _) => series.encode_gauge(count),
        (Value::Measure(measure), _) => series.encode_gauge(measure),
        (Value::Times { buckets, sum }, _) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            series.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

/// The labels of a point, those that say something.
struct Labels<'a>(&'a Point);

impl fmt::Debug for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Labels").field(self.0).finish()
    }
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let whose = self.0.whose.iter().flat_map(|whose| &whose.words);
        let mut names = BTreeSet::new();
        for (name, value) in whose.chain(&self.0.labels) {
            // A word of the owner may be a label of the metric as well.
            if !value.is_empty() && names.insert(*name) {
                (*name, value.as_str()).encode(encoder.encode_label())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{
        exposition::Whose,
        registry::{ATTACH_INFO, CONNECTIONS, FULL, OUTCOMES, WAIT},
    };

    fn sample() -> Arc<Exposition> {
        let mut exposition = Exposition::new(2, 1);
        let whose = Arc::new(Whose {
            words: vec![
                ("network_local_port", "80".to_owned()),
                ("systemd_unit", "a\"b\\c\nd".to_owned()),
            ],
            ..Whose::default()
        });
        let outcome = vec![
            ("verdict", "syn_dropped".to_owned()),
            ("cause", String::new()),
        ];
        exposition.listener(OUTCOMES, &whose, outcome, Value::Count(3));
        exposition.listener(CONNECTIONS, &whose, Vec::new(), Value::Count(2));
        exposition.listener(FULL, &whose, Vec::new(), Value::Measure(1.5));
        let buckets = vec![(0.5, 2), (f64::INFINITY, 1)];
        exposition.listener(WAIT, &whose, Vec::new(), Value::Times { buckets, sum: 2.5 });
        exposition.host(
            ATTACH_INFO,
            vec![("family", "fentry".to_owned())],
            Value::Count(1),
        );
        Arc::new(exposition)
    }

    #[test]
    fn prometheus_text() {
        let text = MetricsFormat::Prometheus.write(sample()).unwrap();
        let l = r#"network_local_port="80",systemd_unit="a\"b\\c\nd""#;
        for line in [
            "# TYPE queue_trace_outcomes_total counter".to_owned(),
            format!("queue_trace_outcomes_total{{{l},verdict=\"syn_dropped\"}} 3"),
            format!("queue_trace_accept_queue_connections{{{l}}} 2"),
            format!("queue_trace_accept_queue_full_seconds_total{{{l}}} 1.5"),
            format!("queue_trace_accept_wait_seconds_count{{{l}}} 3"),
            format!("queue_trace_accept_wait_seconds_bucket{{{l},le=\"+Inf\"}} 3"),
            "queue_trace_attach_info{family=\"fentry\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    }

    #[test]
    fn open_metrics() {
        let text = MetricsFormat::OpenMetrics.write(sample()).unwrap();
        assert!(
            text.contains("# UNIT queue_trace_accept_queue_full_seconds seconds\n"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE queue_trace_outcomes counter\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_scraper_chooses() {
        let form = |accept| MetricsFormat::of_accept(Some(accept));
        // What Prometheus 3.5 sends.
        let newest = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
            application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(form(newest), MetricsFormat::OpenMetrics);
        assert_eq!(
            form("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1"),
            MetricsFormat::Prometheus
        );
        assert_eq!(form("*/*"), MetricsFormat::Prometheus);
        assert_eq!(MetricsFormat::of_accept(None), MetricsFormat::Prometheus);
        assert_eq!(
            form("application/openmetrics-text; version=9.0.0"),
            MetricsFormat::Prometheus
        );
    }
}
