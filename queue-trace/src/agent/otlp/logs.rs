//! Refusals as log records.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
};

use super::attributes::{number, resource, scope, text};
use crate::{agent::labels::Owner, model::event::Event};

/// A refusal, and whose listener it was at.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What happened.
    pub event: Event,
    /// The listener's owner.
    pub owner: Owner,
}

/// The request.
pub fn request(refusals: &[Refusal], host: &str) -> ExportLogsServiceRequest {
    let mut by_owner: BTreeMap<&Owner, Vec<LogRecord>> = BTreeMap::new();
    for refusal in refusals {
        by_owner
            .entry(&refusal.owner)
            .or_default()
            .push(record(&refusal.event));
    }
    let resource_logs = by_owner
        .into_iter()
        .map(|(owner, log_records)| ResourceLogs {
            resource: Some(resource(Some(owner), host)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records,
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        });
    ExportLogsServiceRequest {
        resource_logs: resource_logs.collect(),
    }
}

fn record(event: &Event) -> LogRecord {
    let time = u64::try_from(event.wall_ns).unwrap_or(0);
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: SeverityNumber::Warn.into(),
        severity_text: "WARN".to_owned(),
        body: Some(AnyValue {
            value: Some(any_value::Value::StringValue(event.outcome.says.to_owned())),
        }),
        attributes: attributes(event),
        event_name: "queue_trace.refusal".to_owned(),
        ..LogRecord::default()
    }
}

fn attributes(event: &Event) -> Vec<KeyValue> {
    let mut attributes = vec![text("verdict", event.outcome.verdict)];
    if let Some(cause) = event.outcome.cause {
        attributes.push(text("cause", cause));
    }
    let address = event.listener.addr.or(event.local);
    if let Some(address) = address {
        attributes.push(text("network.local.address", address.to_string()));
    }
    attributes.push(number("network.local.port", event.listener.port.into()));
    attributes.push(text("network.transport", "tcp"));
    if let Some(client) = event.client {
        attributes.push(text("client.address", client.addr.to_string()));
        attributes.push(number("client.port", client.port.into()));
    }
    if let Some(queue) = event.accept_queue {
        attributes.push(number("queue_trace.accept_queue.depth", queue.depth.into()));
        attributes.push(number("queue_trace.accept_queue.limit", queue.limit.into()));
    }
    attributes.push(number(
        "queue_trace.count",
        i64::try_from(event.count).unwrap_or(i64::MAX),
    ));
    attributes
}
