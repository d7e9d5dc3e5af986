//! One reading of all metrics, and its text in the OpenMetrics format.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::definitions::{Kind, Metric};

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, PartialEq, Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: f64,
}

/// One reading.
#[derive(Clone, PartialEq, Debug)]
pub struct Page(Vec<Vec<Sample>>);

impl Default for Page {
    fn default() -> Self {
        Self(vec![Vec::new(); Metric::ALL.len()])
    }
}

impl Page {
    /// Adds a value; `labels` are the values of the metric's labels, in order.
    pub fn put(&mut self, metric: Metric, labels: &[&str], value: f64) {
        let names = metric.definition().labels;
        debug_assert_eq!(names.len(), labels.len(), "the labels of {metric:?}");
        let labels = names.iter().zip(labels).map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.0[metric as usize].push(Sample { labels, value });
    }

    /// Adds a count. Beyond 2^53 it is rounded, as the collector does too.
    pub fn count(&mut self, metric: Metric, labels: &[&str], value: u64) {
        self.put(metric, labels, value as f64);
    }

    /// The page as text.
    ///
    /// # Errors
    /// Only when there is no memory for it.
    pub fn text(self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (metric, samples) in Metric::ALL.iter().zip(&self.0) {
            if samples.is_empty() {
                continue;
            }
            let definition = metric.definition();
            let unit = (!definition.unit.is_empty()).then(|| Unit::Other(definition.unit.to_owned()));
            let kind = match definition.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut family = encoder.encode_descriptor(definition.stem, definition.help, unit.as_ref(), kind)?;
            for sample in samples {
                // The two parts of a label set are written one behind the other; without labels there is no brace.
                let mut one = |labels: Option<&Vec<(&'static str, String)>>| match (labels, definition.kind) {
                    (Some(labels), Kind::Counter) => {
                        family.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(&sample.value, None)
                    }
                    (Some(labels), Kind::Gauge) => family.encode_family(labels)?.encode_gauge(&sample.value),
                    (None, Kind::Counter) => family.encode_counter::<NoLabelSet, _, f64>(&sample.value, None),
                    (None, Kind::Gauge) => family.encode_gauge(&sample.value),
                };
                one(Some(&sample.labels).filter(|labels| !labels.is_empty()))?;
            }
        }
        Ok(())
    }
}
