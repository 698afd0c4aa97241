//! Histograms that were counted elsewhere.

use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// From counts by bucket, shortest first: each with its bound, the last without. `None` where nothing was counted: that would
/// be twenty lines of zeros.
pub(super) fn histogram(counts: impl Iterator<Item = (Option<f64>, u64)>, sum: f64) -> Option<Histogram> {
    let mut buckets = Vec::new();
    let mut total = 0;
    for (up_to, count) in counts {
        total += count;
        // The last one has no bound, and is the total.
        if let Some(up_to) = up_to {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(up_to);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(total);
    histogram.set_sample_sum(sum);
    (total > 0).then_some(histogram)
}

/// One histogram of a family.
pub(super) fn labelled(labels: &[(&str, &str)], histogram: Histogram) -> Metric {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(label).collect());
    metric.set_histogram(histogram);
    metric
}

/// All histograms of one name.
pub(super) fn family((name, help): (&str, &str), metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(metrics);
    family
}
