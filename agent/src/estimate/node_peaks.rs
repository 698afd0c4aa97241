//! What a node's guaranteed tasks will use together at their peak within the next hour: CPU and memory.
//!
//! ```text
//! TaskUse, each second -> Periods -> Period, each five minutes -> Peak of CPU, Peak of memory
//! ```

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    peak::{Method, Peak, PeakState},
    periods::{Periods, TaskUse},
};

/// What a state means that was written; another version is left alone.
const VERSION: u32 = 1;
/// A state that is older says nothing of today.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Of ten thousand tasks; what is larger is no state.
const LARGEST_BYTES: u64 = 64 << 20;

/// What the agent predicts of its node.
pub struct NodePeaks {
    periods: Periods,
    cpu: Peak,
    mem: Peak,
}

/// What of it outlives a restart of the agent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodePeaksState {
    version: u32,
    /// Since 1970.
    written_at_ms: u64,
    cpu: PeakState,
    mem: PeakState,
}

/// The state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("the state of predictions {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its text is none of ours.
    #[error("the state of predictions {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// Another agent wrote it, or long ago.
    #[error("the state of predictions {} is {why}", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl NodePeaks {
    /// Of a node that offers so much.
    pub fn new(method: &Method, cpu_milli: u64, mem_bytes: u64) -> Self {
        Self {
            periods: Periods::default(),
            cpu: Peak::new(method, cpu_milli as f64),
            mem: Peak::new(method, mem_bytes as f64),
        }
    }

    /// Takes in what all guaranteed tasks use now; whether that changed the prediction.
    pub fn add(&mut self, tasks: &[TaskUse], now: Instant) -> bool {
        let Some(period) = self.periods.add(tasks, now) else { return false };
        self.cpu.add(&period.cpu);
        self.mem.add(&period.mem);
        true
    }

    /// CPU at the peak; `None` in the first minutes.
    pub fn cpu_milli(&self) -> Option<u64> {
        self.cpu.value().map(whole)
    }

    /// Memory at the peak; `None` in the first minutes.
    pub fn mem_bytes(&self) -> Option<u64> {
        self.mem.value().map(whole)
    }

    /// What to keep.
    pub fn state(&self, unix_time_ms: u64) -> NodePeaksState {
        let (cpu, mem) = (self.cpu.state(), self.mem.state());
        NodePeaksState { version: VERSION, written_at_ms: unix_time_ms, cpu, mem }
    }

    /// Goes on with what was known before a restart.
    pub fn resume(&mut self, state: NodePeaksState) {
        self.cpu.resume(state.cpu);
        self.mem.resume(state.mem);
    }
}

/// Rounded up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "peaks are never negative; a cast saturates"
)]
fn whole(peak: f64) -> u64 {
    peak.ceil() as u64
}

impl NodePeaksState {
    /// Replaces the file as a whole, so that a crash leaves the old one or the new one. Not synced: what is lost with the
    /// host is learned again.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn write(&self, path: &Path) -> Result<(), StateError> {
        let file = |source| StateError::File { path: path.into(), source };
        let text = serde_json::to_vec(self).map_err(|e| file(io::Error::other(e)))?;
        let new = path.with_extension("new");
        fs::File::create(&new).and_then(|mut to| to.write_all(&text)).map_err(file)?;
        fs::rename(&new, path).map_err(file)
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// When it is not what was written, or not from the last day.
    pub fn read(path: &Path, unix_time_ms: u64) -> Result<Option<Self>, StateError> {
        let file = |source| StateError::File { path: path.into(), source };
        let stale = |why| Err(StateError::Stale { path: path.into(), why });
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file(e)),
            Ok(about) if about.len() > LARGEST_BYTES => return stale("too large"),
            Ok(_) => {}
        }
        let text = fs::read(path).map_err(file)?;
        let damaged = |source| StateError::Damaged { path: path.into(), source };
        let version: Version = serde_json::from_slice(&text).map_err(damaged)?;
        if version.version != VERSION {
            return stale("of another version");
        }
        let state: Self = serde_json::from_slice(&text).map_err(damaged)?;
        let age = unix_time_ms.checked_sub(state.written_at_ms).map(Duration::from_millis);
        match age {
            None => stale("from the future"),
            Some(age) if age > OLDEST => stale("older than a day"),
            Some(_) => Ok(Some(state)),
        }
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn task(id: u64, cpu_milli: u64) -> TaskUse {
        TaskUse {
            id,
            cpu_milli: Some(cpu_milli),
            mem_bytes: Some(cpu_milli << 16),
            cpu_limit_milli: Some(1000),
            mem_limit_bytes: Some(1 << 30),
        }
    }

    fn after_hours(hours: u64) -> NodePeaks {
        let mut peaks = NodePeaks::new(&Method::default(), 16_000, 64 << 30);
        let start = Instant::now();
        for second in (0..=hours * 3600).step_by(60) {
            let tasks: Vec<_> = (0..10).map(|id| task(id, 100 + (second / 60 + id) % 7)).collect();
            peaks.add(&tasks, start + Duration::from_secs(second));
        }
        peaks
    }

    #[test]
    fn the_first_period_already_has_a_peak_that_falls_as_more_is_known() {
        let mut peaks = NodePeaks::new(&Method::default(), 16_000, 64 << 30);
        let start = Instant::now();
        assert!(!peaks.add(&[task(1, 100)], start));
        assert_eq!((peaks.cpu_milli(), peaks.mem_bytes()), (None, None));
        peaks.add(&[task(1, 100)], start + Duration::from_secs(150));
        assert!(peaks.add(&[task(1, 100)], start + Duration::from_secs(300)));
        assert!(
            peaks.cpu_milli().is_some_and(|milli| (100..=1000).contains(&milli)),
            "{:?}",
            peaks.cpu_milli()
        );
        let known = after_hours(3);
        assert!(
            known.cpu_milli().is_some_and(|milli| (1000..2500).contains(&milli)),
            "{:?}",
            known.cpu_milli()
        );
        assert!(known.mem_bytes().is_some_and(|bytes| bytes < 4 << 30), "{:?}", known.mem_bytes());
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions.json");
        assert_eq!(NodePeaksState::read(&path, 0).unwrap(), None);
        let before = after_hours(3);
        before.state(HOUR_MS).write(&path).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 64 << 10, "small");
        let mut peaks = NodePeaks::new(&Method::default(), 16_000, 64 << 30);
        peaks.resume(NodePeaksState::read(&path, 2 * HOUR_MS).unwrap().unwrap());
        let start = Instant::now();
        for second in [0, 150, 300] {
            let tasks: Vec<_> = (0..10).map(|id| task(id, 103)).collect();
            peaks.add(&tasks, start + Duration::from_secs(second));
        }
        let (before, after) = (before.cpu_milli().unwrap() as f64, peaks.cpu_milli().unwrap() as f64);
        assert!((after / before - 1.0).abs() < 0.2, "{before} {after}");
    }

    #[test]
    fn what_is_no_state_of_today_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions.json");
        after_hours(1).state(100 * HOUR_MS).write(&path).unwrap();
        let why = |at| NodePeaksState::read(&path, at).unwrap_err().to_string();
        assert!(why(99 * HOUR_MS).contains("from the future"));
        assert!(why(125 * HOUR_MS).contains("older than a day"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(why(100 * HOUR_MS).contains("damaged"));
        fs::write(&path, text.replacen("\"version\":1", "\"version\":9", 1)).unwrap();
        assert!(why(100 * HOUR_MS).contains("of another version"));
        fs::write(&path, [0xff; 100]).unwrap();
        assert!(why(100 * HOUR_MS).contains("damaged"));
    }

    /// Numbers that no agent would write do not stop it, and do not last.
    #[test]
    fn a_state_with_absurd_numbers_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions.json");
        after_hours(3).state(0).write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in
            [("\"mean\":1", "\"mean\":1e308"), ("\"limit\":1000.0", "\"limit\":-7.0"), ("[", "[-1e300,")]
        {
            fs::write(&path, text.replace(from, to)).unwrap();
            let Ok(Some(state)) = NodePeaksState::read(&path, 0) else { continue };
            let mut peaks = NodePeaks::new(&Method::default(), 16_000, 64 << 30);
            peaks.resume(state);
            let start = Instant::now();
            for second in [0, 150, 300] {
                peaks.add(&[task(1, 500)], start + Duration::from_secs(second));
            }
            assert!(peaks.cpu_milli().is_some_and(|milli| (500..=1000).contains(&milli)), "{from}");
        }
    }
}
