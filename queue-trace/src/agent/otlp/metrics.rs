//! The exposition as an OTLP request: the owner of each listener is a resource.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
};

use super::attributes::{number, resource, scope, text};
use crate::agent::{
    exposition::{Exposition, Point, Value},
    labels::Owner,
    registry::{self, METRICS, MetricKind},
};

/// The request.
pub fn request(exposition: &Exposition, host: &str) -> ExportMetricsServiceRequest {
    let mut by_owner: BTreeMap<Option<&Owner>, Vec<Metric>> = BTreeMap::new();
    for metric in METRICS.iter().filter(|metric| !metric.otel.is_empty()) {
        let mut points: BTreeMap<Option<&Owner>, Vec<&Point>> = BTreeMap::new();
        for point in exposition.family(metric.index) {
            let owner = point.whose.as_ref().map(|whose| &whose.owner);
            points.entry(owner).or_default().push(point);
        }
        for (owner, points) in points {
            by_owner.entry(owner).or_default().push(Metric {
                name: metric.otel.to_owned(),
                description: metric.help.to_owned(),
                unit: metric.unit.to_owned(),
                data: Some(data(metric, &points, exposition)),
                ..Metric::default()
            });
        }
    }
    let resource_metrics = by_owner
        .into_iter()
        .map(|(owner, metrics)| ResourceMetrics {
            resource: Some(resource(owner, host)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics,
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        });
    ExportMetricsServiceRequest {
        resource_metrics: resource_metrics.collect(),
    }
}

fn data(metric: &registry::Metric, points: &[&Point], exposition: &Exposition) -> Data {
    let cumulative = AggregationTemporality::Cumulative.into();
    let (time, since) = (exposition.time, exposition.since);
    let numbers = || {
        let points = points.iter().map(|point| NumberDataPoint {
            attributes: attributes(point),
            start_time_unix_nano: since,
            time_unix_nano: time,
            value: Some(match point.value {
                Value::Count(count) => {
                    number_data_point::Value::AsInt(i64::try_from(count).unwrap_or(i64::MAX))
                }
                Value::Measure(measure) => number_data_point::Value::AsDouble(measure),
                Value::Times { sum, .. } => number_data_point::Value::AsDouble(sum),
            }),
            ..NumberDataPoint::default()
        });
        points.collect()
    };
    match metric.kind {
        MetricKind::Counter | MetricKind::UpDown => Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: cumulative,
            is_monotonic: metric.kind == MetricKind::Counter,
        }),
        MetricKind::Gauge | MetricKind::Info => Data::Gauge(Gauge {
            data_points: numbers(),
        }),
        MetricKind::Histogram => Data::Histogram(Histogram {
            data_points: points
                .iter()
                .filter_map(|point| histogram(point, time, since))
                .collect(),
            aggregation_temporality: cumulative,
        }),
    }
}

fn histogram(point: &Point, time: u64, since: u64) -> Option<HistogramDataPoint> {
    let Value::Times { buckets, sum } = &point.value else {
        return None;
    };
    let bounds = buckets.iter().map(|(bound, _)| *bound);
    Some(HistogramDataPoint {
        attributes: attributes(point),
        start_time_unix_nano: since,
        time_unix_nano: time,
        count: buckets.iter().map(|(_, count)| count).sum(),
        sum: Some(*sum),
        bucket_counts: buckets.iter().map(|(_, count)| *count).collect(),
        // The last bucket has no bound.
        explicit_bounds: bounds.filter(|bound| bound.is_finite()).collect(),
        ..HistogramDataPoint::default()
    })
}

/// The labels of a point by their names in OpenTelemetry.
fn attributes(point: &Point) -> Vec<KeyValue> {
    let whose = point.whose.iter().flat_map(|whose| &whose.words);
    let whose = whose.map(|(name, value)| {
        let name = name.replace('_', ".");
        match value.parse() {
            Ok(port) if name == "network.local.port" => number(&name, port),
            // As the SDKs mark it.
            _ if name == "overflow" => text("otel.metric.overflow", "true"),
            _ => text(&name, value.clone()),
        }
    });
    let own = point.labels.iter().filter(|(_, value)| !value.is_empty());
    whose
        .chain(own.map(|(name, value)| text(name, value.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::{
        exposition::Whose,
        registry::{CONNECTIONS, OUTCOMES, UNEXPLAINED, WAIT},
    };

    #[test]
    fn one_resource_for_each_owner() {
        let mut exposition = Exposition::new(20, 10);
        let whose = |unit: &str, port: &str| {
            Arc::new(Whose {
                words: vec![("network_local_port", port.to_owned())],
                owner: Owner {
                    unit: Some(unit.to_owned()),
                    ..Owner::default()
                },
            })
        };
        let (a, b) = (whose("a.service", "80"), whose("b.service", "ephemeral"));
        exposition.listener(
            OUTCOMES,
            &a,
            vec![("verdict", "accepted".to_owned()), ("cause", String::new())],
            Value::Count(3),
        );
        exposition.listener(CONNECTIONS, &b, Vec::new(), Value::Count(1));
        let buckets = vec![(0.5, 2), (f64::INFINITY, 1)];
        exposition.listener(WAIT, &a, Vec::new(), Value::Times { buckets, sum: 2.5 });
        exposition.host(UNEXPLAINED, Vec::new(), Value::Count(0));
        let request = request(&exposition, "here");
        assert_eq!(request.resource_metrics.len(), 3);
        let of_a = &request.resource_metrics[1];
        let attributes = &of_a.resource.as_ref().unwrap().attributes;
        assert!(
            attributes.contains(&text("systemd.unit", "a.service")),
            "{attributes:?}"
        );
        assert!(attributes.contains(&text("host.name", "here")));
        let [outcomes, wait] = &of_a.scope_metrics[0].metrics[..] else {
            panic!("{of_a:?}");
        };
        let Some(Data::Sum(sum)) = &outcomes.data else {
            panic!("{outcomes:?}");
        };
        assert!(sum.is_monotonic);
        let point = &sum.data_points[0];
        assert_eq!(
            point.attributes,
            [
                number("network.local.port", 80),
                text("verdict", "accepted")
            ]
        );
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (10, 20));
        let Some(Data::Histogram(histogram)) = &wait.data else {
            panic!("{wait:?}");
        };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (3, Some(2.5)));
        assert_eq!(
            (&point.bucket_counts[..], &point.explicit_bounds[..]),
            (&[2, 1][..], &[0.5][..])
        );
    }
}
