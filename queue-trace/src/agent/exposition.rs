//! What is told at one moment: the values of all metrics, which [`super::text`] and
//! [`super::otlp`] write in their forms.

use std::sync::Arc;

use super::{
    labels::{LabelWords, Owner},
    registry::COUNT,
};

/// Whose a series is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whose {
    /// The labels of a listener's series.
    pub words: LabelWords,
    /// Its owner, the resource in OpenTelemetry.
    pub owner: Owner,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A measure.
    Measure(f64),
    /// Times in buckets.
    Times {
        /// How many were up to the bound, and not up to the one before; the last bucket has
        /// no bound.
        buckets: Vec<(f64, u64)>,
        /// The sum of all, seconds.
        sum: f64,
    },
}

/// One series at that moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Whose; `None` for metrics that are not about a listener.
    pub whose: Option<Arc<Whose>>,
    /// The labels of the metric itself.
    pub labels: LabelWords,
    /// The value.
    pub value: Value,
}

/// All series of a moment.
#[derive(Debug, Clone, Default)]
pub struct Exposition {
    /// For each metric of the registry, its series.
    families: Vec<Vec<Point>>,
    /// When, nanoseconds since 1970.
    pub time: u64,
    /// Since when the counters count, nanoseconds since 1970.
    pub since: u64,
}

impl Exposition {
    /// Nothing yet.
    #[must_use]
    pub fn new(time: u64, since: u64) -> Self {
        Self {
            families: vec![Vec::new(); COUNT],
            time,
            since,
        }
    }

    /// One more series of a metric that is not about a listener.
    pub fn host(&mut self, metric: usize, labels: LabelWords, value: Value) {
        self.push(metric, None, labels, value);
    }

    /// One more series of a listener.
    pub fn listener(
        &mut self,
        metric: usize,
        whose: &Arc<Whose>,
        labels: LabelWords,
        value: Value,
    ) {
        self.push(metric, Some(Arc::clone(whose)), labels, value);
    }

    fn push(&mut self, metric: usize, whose: Option<Arc<Whose>>, labels: LabelWords, value: Value) {
        if let Some(family) = self.families.get_mut(metric) {
            family.push(Point {
                whose,
                labels,
                value,
            });
        }
    }

    /// The series of a metric.
    #[must_use]
    pub fn family(&self, metric: usize) -> &[Point] {
        self.families.get(metric).map_or(&[], Vec::as_slice)
    }
}
