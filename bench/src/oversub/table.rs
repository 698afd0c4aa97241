//! The results as people read them.

use super::{Oversub, onset::Onsets, point::Point};
use crate::tables::{ms, table};

/// Points, verdicts and the time to the first squeeze.
pub(crate) fn render(oversub: &Oversub) -> String {
    let rows = oversub.points.iter().map(row).collect();
    let header = [
        "RATIO",
        "SET-UP",
        "P50 ms",
        "P99 ms",
        "(RANGE)",
        "P99.9 ms",
        "REQUESTS/s",
        "UNITS/s",
        "BUSY %",
        "STEPS",
    ];
    let verdicts = oversub.verdicts.iter().map(|one| vec![one.ratio.to_string(), one.says.clone()]).collect();
    let mut parts = vec![
        format!(
            "a service with {:.0} requests a second of {} us, granted {} milli; windows of {} s, {} rounds (medians)",
            oversub.requests_per_second,
            oversub.request_us,
            oversub.service_granted_milli,
            oversub.window_seconds,
            oversub.rounds,
        ),
        table(&header, rows),
        table(&["RATIO", "P99 WITHIN 10 % OF ALONE, ABOVE 70 % BUSY, AND WEIGHTS NOT"], verdicts),
    ];
    parts.extend(oversub.time_to_squeeze.as_ref().map(squeeze));
    parts.join("\n\n")
}

fn row(point: &Point) -> Vec<String> {
    let [least, most] = point.p99_range_us.map(ms);
    vec![
        point.ratio.to_string(),
        point.setup.name(),
        format!("{:.3}", point.p50_us / 1e3),
        format!("{:.3}", point.p99_us / 1e3),
        format!("({least} to {most})"),
        format!("{:.3}", point.p999_us / 1e3),
        format!("{:.1}", point.requests_per_second),
        format!("{:.1}", point.batch_units_per_second),
        format!("{:.1}", point.busy_percent),
        point.corrections.to_string(),
    ]
}

fn squeeze(onsets: &Onsets) -> String {
    let rows = onsets.kinds.iter().map(|kind| {
        let mut row = vec![kind.answered.to_string(), kind.by.name(), kind.unanswered.to_string()];
        let times = kind.from_onset.as_ref().map(|times| [times.p50_us, times.p99_us, times.max_us].map(ms));
        row.extend(times.unwrap_or_default());
        row
    });
    table(&["SQUEEZES", "WHO BEGAN TO BURN", "NONE", "P50 ms", "P99 ms", "MAX ms"], rows.collect())
}
