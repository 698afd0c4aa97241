//! What is kept for the next task: files that were fetched, and layers of images.

use bulkhead_stage::CacheUse;
use prometheus::{
    IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::Metrics;

/// Reads one of them.
pub type ReadCache = Box<dyn Fn() -> CacheUse + Send + Sync>;

/// Reads all of them when it is asked.
struct Caches {
    hits: IntCounterVec,
    misses: IntCounterVec,
    bytes: IntGaugeVec,
    caches: Vec<(&'static str, ReadCache)>,
}

impl Metrics {
    /// Tells of caches, each by its name, read at each scrape.
    ///
    /// # Errors
    /// When it was told before.
    pub fn caches(&self, caches: Vec<(&'static str, ReadCache)>) -> Result<(), prometheus::Error> {
        let counter = |name, help| IntCounterVec::new(Opts::new(name, help), &["cache"]);
        let bytes = Opts::new("bulkhead_agent_cache_bytes", "What is kept, and is on its way in.");
        self.registry.register(Box::new(Caches {
            hits: counter("bulkhead_agent_cache_hits_total", "What was asked for and there.")?,
            misses: counter(
                "bulkhead_agent_cache_misses_total",
                "What was asked for and had to be fetched.",
            )?,
            bytes: IntGaugeVec::new(bytes, &["cache"])?,
            caches,
        }))
    }
}

impl Collector for Caches {
    fn desc(&self) -> Vec<&Desc> {
        [self.hits.desc(), self.misses.desc(), self.bytes.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (name, read) in &self.caches {
            let CacheUse { hits, misses, bytes } = read();
            for (counter, now) in [(&self.hits, hits), (&self.misses, misses)] {
                let counter = counter.with_label_values(&[name]);
                counter.inc_by(now.saturating_sub(counter.get()));
            }
            self.bytes.with_label_values(&[name]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        [self.hits.collect(), self.misses.collect(), self.bytes.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    #[test]
    fn each_scrape_tells_the_counts_of_now() {
        let metrics = Metrics::new().unwrap();
        let hits = Arc::new(AtomicU64::new(3));
        let read = Arc::clone(&hits);
        let artifacts: ReadCache =
            Box::new(move || CacheUse { hits: read.load(Ordering::Relaxed), misses: 2, bytes: 7 });
        metrics.caches(vec![("artifacts", artifacts)]).unwrap();
        let told = |line: &str| String::from_utf8(metrics.render().unwrap()).unwrap().contains(line);
        for count in [3, 3, 8] {
            hits.store(count, Ordering::Relaxed);
            assert!(told(&format!("bulkhead_agent_cache_hits_total{{cache=\"artifacts\"}} {count}\n")));
        }
        assert!(told("bulkhead_agent_cache_misses_total{cache=\"artifacts\"} 2\n"));
        assert!(told("bulkhead_agent_cache_bytes{cache=\"artifacts\"} 7\n"));
    }
}
