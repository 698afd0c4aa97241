//! The results as people read them.

use super::{Offers, honesty::Trial};
use crate::tables::{mib, table};

/// Each trial, and the shares.
pub(crate) fn render(all: &[Offers]) -> String {
    let trials = all.iter().flat_map(|offers| offers.tried.iter().map(|trial| row(offers, trial)));
    let header = [
        "AT s",
        "BOOKS",
        "OFFERED CPU",
        "GOT %",
        "OFFERED MEMORY",
        "GOT %",
        "STALLED %",
        "PORTS",
        "STEADY BEFORE %",
        "MEANWHILE %",
        "HONEST",
    ];
    let shares = all.iter().map(|offers| {
        let shares = &offers.shares;
        let percent = [
            shares.honest_percent,
            shares.cpu_percent,
            shares.mem_percent,
            shares.ports_percent,
            shares.honest_undisturbed_percent,
            shares.noticed_percent,
        ];
        let mut row = vec![shares.trials.to_string(), offers.books.to_string()];
        row.extend(percent.map(|percent| format!("{percent:.1}")));
        row.extend([offers.nothing_offered, offers.withdrawn].map(|count| count.to_string()));
        row
    });
    let summary = [
        "TRIALS",
        "BOOKS",
        "HONEST %",
        "CPU %",
        "MEMORY %",
        "PORTS %",
        "NOBODY CAME: HONEST %",
        "STEADY NOTICED %",
        "NOTHING OFFERED",
        "WITHDRAWN",
    ];
    [table(&header, trials.collect()), table(&summary, shares.collect())].join("\n\n")
}

fn row(offers: &Offers, trial: &Trial) -> Vec<String> {
    let honest = match (trial.honest(), trial.stranger_came) {
        (true, _) => "yes",
        (false, true) => "no, somebody came",
        (false, false) => "no",
    };
    let memory =
        if trial.out_of_memory { "killed".to_owned() } else { format!("{:.1}", trial.mem_got_percent) };
    vec![
        format!("{:.1}", trial.at_seconds),
        offers.books.to_string(),
        trial.offered_cpu_milli.to_string(),
        format!("{:.1}", trial.cpu_got_percent),
        mib(trial.offered_mem_bytes),
        memory,
        format!("{:.1}", trial.mem_stalled_percent),
        format!("{}/{}", trial.ports_got, trial.ports_asked),
        format!("{:.1}", trial.steady_before_percent),
        format!("{:.1}", trial.steady_meanwhile_percent),
        honest.to_owned(),
    ]
}
