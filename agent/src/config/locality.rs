//! Settings of what frameworks are told about the way to their data.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, plain_absolute};

/// Longest and shortest time bound of a look, in milliseconds.
const TIME_BOUND_MS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// The section `[locality]` of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct LocalityConfig {
    /// Frameworks may ask about what is below these directories. The agent looks as root, and its answer tells that
    /// something exists and how large it is, so none by default.
    pub roots: Vec<PathBuf>,
    /// HOST:PORT of WebHDFS servers that may be asked. The agent reaches networks that frameworks may not, so none by
    /// default.
    pub name_nodes: Vec<String>,
    /// Whom WebHDFS is asked as (`user.name`); empty leaves that to the server.
    pub hdfs_user: String,
    /// Models of disks besides the one below `work_dir`, made by `calibrate-disk`.
    pub disk_models: Vec<PathBuf>,
    /// A look at one data set takes this long at most; what it did not get to is extrapolated. Enough for about ten
    /// thousand files.
    pub time_bound_ms: u64,
    /// The same for a path of HDFS, where each file is a request.
    pub hdfs_time_bound_ms: u64,
    /// A data set is looked at this often at most.
    pub refresh_ms: u64,
    /// Of one CPU, in thousandths: all looks together take no more, however many data sets there are; they then come
    /// less often. The whole agent is to stay below 1 % of a CPU.
    pub budget_permille: u32,
    /// Data sets of all frameworks together.
    pub max_data_sets: usize,
    /// The master is told again when the cost has changed by this percentage: placement can hardly tell less apart.
    pub news_percent: u32,
}

impl Default for LocalityConfig {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            name_nodes: Vec::new(),
            hdfs_user: String::new(),
            disk_models: Vec::new(),
            time_bound_ms: 200,
            hdfs_time_bound_ms: 2000,
            refresh_ms: 10_000,
            budget_permille: 5,
            max_data_sets: 256,
            news_percent: 10,
        }
    }
}

impl LocalityConfig {
    /// May frameworks ask about anything?
    pub fn answers(&self) -> bool {
        !self.roots.is_empty() || !self.name_nodes.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, value: String, why: &str| Err(ConfigError::Value { key, value, why: why.into() });
        for (key, paths) in [("locality.roots", &self.roots), ("locality.disk_models", &self.disk_models)] {
            if let Some(path) = paths.iter().find(|path| plain_absolute(path).is_none()) {
                return bad(key, path.display().to_string(), "write an absolute path without ..");
            }
        }
        if let Some(node) = self.name_nodes.iter().find(|node| !host_and_port(node)) {
            return bad(
                "locality.name_nodes",
                node.clone(),
                "write HOST:PORT, such as namenode.example:9870",
            );
        }
        for (key, value) in [
            ("locality.time_bound_ms", self.time_bound_ms),
            ("locality.hdfs_time_bound_ms", self.hdfs_time_bound_ms),
        ] {
            if !TIME_BOUND_MS.contains(&value) {
                return bad(key, value.to_string(), "give 1 to 10000");
            }
        }
        if self.refresh_ms == 0 {
            return bad("locality.refresh_ms", "0".into(), "give at least 1");
        }
        if !(1..=1000).contains(&self.budget_permille) {
            return bad("locality.budget_permille", self.budget_permille.to_string(), "give 1 to 1000");
        }
        Ok(())
    }
}

/// Is this HOST:PORT?
pub(super) fn host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let refused = |config: LocalityConfig| config.check().unwrap_err().to_string();
        let base = LocalityConfig::default;
        base().check().unwrap();
        assert!(refused(LocalityConfig { roots: vec!["data".into()], ..base() }).contains("locality.roots"));
        assert!(refused(LocalityConfig { roots: vec!["/a/../b".into()], ..base() }).contains(".."));
        assert!(refused(LocalityConfig { name_nodes: vec!["nn".into()], ..base() }).contains("HOST:PORT"));
        assert!(refused(LocalityConfig { time_bound_ms: 0, ..base() }).contains("time_bound_ms"));
        assert!(refused(LocalityConfig { refresh_ms: 0, ..base() }).contains("refresh_ms"));
        assert!(refused(LocalityConfig { budget_permille: 0, ..base() }).contains("budget_permille"));
        assert!(!base().answers());
    }
}
