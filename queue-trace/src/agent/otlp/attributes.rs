//! What all requests are made of: attributes, the resource that they tell of, and who tells.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
};

use crate::agent::labels::Owner;

/// A name with words.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    with_value(key, any_value::Value::StringValue(value.into()))
}

/// A name with a number.
pub(super) fn number(key: &str, value: i64) -> KeyValue {
    with_value(key, any_value::Value::IntValue(value))
}

fn with_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// The owner of a listener as a resource, by which a collector finds more of it.
pub(super) fn resource(owner: Option<&Owner>, host: &str) -> Resource {
    let mut attributes = vec![
        text("service.name", "queue-trace"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", host),
    ];
    let words = owner.into_iter().flat_map(|owner| {
        [
            ("systemd.unit", &owner.unit),
            ("k8s.pod.uid", &owner.pod_uid),
            ("k8s.namespace.name", &owner.pod_namespace),
            ("k8s.pod.name", &owner.pod_name),
            ("k8s.container.name", &owner.pod_container),
            ("container.id", &owner.container),
            ("process.executable.name", &owner.executable),
        ]
    });
    for (key, word) in words {
        if let Some(word) = word {
            attributes.push(text(key, word.clone()));
        }
    }
    Resource {
        attributes,
        ..Resource::default()
    }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "queue-trace".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}
