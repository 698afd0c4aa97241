//! Recorded days, and the machines that are made of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// A day of many tasks.
#[derive(Clone, Debug)]
pub(crate) struct Day {
    pub(crate) path: PathBuf,
    /// Samples of each task, in percent of its limit.
    pub(crate) tasks: Vec<Vec<f64>>,
}

impl Day {
    /// Reads a file of comma-separated numbers.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let row = |(number, line): (usize, &str)| {
            let samples =
                line.split(',').map(|word| word.trim().parse::<f64>()).collect::<Result<Vec<_>, _>>();
            samples.with_context(|| format!("{}: line {}: no list of numbers", path.display(), number + 1))
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let tasks = lines.map(row).collect::<Result<Vec<_>>>()?;
        let length = tasks.first().map_or(0, Vec::len);
        ensure!(length > 0, "{}: no samples in it", path.display());
        ensure!(tasks.iter().all(|task| task.len() == length), "{}: rows differ in length", path.display());
        let used = |sample: &f64| sample.is_finite() && *sample >= 0.0;
        let all_used = tasks.iter().flatten().all(used);
        ensure!(all_used, "{}: a sample is negative or not finite", path.display());
        Ok(Self { path: path.into(), tasks })
    }
}

/// The day's tasks, shuffled and cut into groups of `count`; what is left over is no machine.
pub(crate) fn machines(day: &Day, count: usize, seed: u64) -> Vec<Vec<&[f64]>> {
    let mut order: Vec<&[f64]> = day.tasks.iter().map(Vec::as_slice).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    order.chunks_exact(count.max(1)).map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_dealt_out_once_and_the_same_for_a_seed() {
        let tasks = (0..23).map(|i| vec![f64::from(i)]).collect();
        let day = Day { path: PathBuf::new(), tasks };
        let dealt = machines(&day, 5, 7);
        assert_eq!(dealt.len(), 4);
        let mut all: Vec<_> = dealt.iter().flatten().map(|task| task[0].to_bits()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 20);
        assert_eq!(machines(&day, 5, 7), dealt);
        assert_ne!(machines(&day, 5, 8), dealt);
    }

    #[test]
    fn a_file_that_is_no_trace_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("day.csv");
        for (text, why) in [
            ("1,2\n3,x\n", "line 2"),
            ("1,2\n3\n", "differ in length"),
            ("1,nan\n", "not finite"),
            ("-1,2\n", "negative"),
            ("\n", "no samples"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Day::read(&path).unwrap_err());
            assert!(error.contains(why) && error.contains("day.csv"), "{error}");
        }
        fs::write(&path, "1,2\n 3, 4.5\n").unwrap();
        assert_eq!(Day::read(&path).unwrap().tasks, [[1.0, 2.0], [3.0, 4.5]]);
    }
}
