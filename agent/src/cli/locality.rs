//! `bulkhead-agent locality`: shows what frameworks would be told about the way to their data.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bulkhead_agent::{
    config::Config,
    measure::locality::{Looker, Meter},
};
use bulkhead_proto::v1::DataAccess;
use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

/// How long the use of the link is watched before the answer.
const LINK_WATCH: Duration = Duration::from_millis(200);

/// What `locality` takes.
#[derive(Args)]
pub(super) struct Locality {
    /// Files, directories, patterns ('/data/day=*'), webhdfs://HOST:PORT/PATH
    #[arg(value_name = "DATA_SET", required = true)]
    data_sets: Vec<String>,
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "the output of this subcommand")]
pub(super) async fn run(args: &Locality, config: &Config) -> Result<ExitCode> {
    let looker = Arc::new(Looker::new(config)?);
    let mut meter = Meter::start(config);
    meter.now(Instant::now());
    tokio::time::sleep(LINK_WATCH).await;
    let bandwidths = meter.now(Instant::now());
    let mut answers = Vec::new();
    for name in &args.data_sets {
        answers.push(looker.access(name, &bandwidths, fastrand::u64(..)).await);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answers)?);
    } else {
        println!("{}", table(&answers));
    }
    let untold = answers.iter().any(|answer| !answer.error.is_empty());
    Ok(if untold { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(answers: &[DataAccess]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "DATA SET",
        "COST",
        "IN MEMORY",
        "ON DISK",
        "ELSEWHERE",
        "FILES",
        "NOTE",
    ]);
    for answer in answers {
        // Names come from anywhere; what they do to a terminal does not.
        let name = answer.data_set.escape_debug().to_string();
        if !answer.error.is_empty() {
            table.add_row([
                name,
                "?".to_owned(),
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                answer.error.clone(),
            ]);
            continue;
        }
        let size = |bytes: u64| ByteSize(bytes).to_string();
        table.add_row([
            name,
            format!("{:?}", Duration::from_micros(answer.access_usec)),
            size(answer.cached_bytes),
            size(answer.disk_bytes),
            size(answer.elsewhere_bytes),
            answer.entries_total.to_string(),
            note(answer),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn note(answer: &DataAccess) -> String {
    let mut notes = Vec::new();
    if answer.sampled {
        notes.push(format!("sampled: {} files looked at", answer.entries_seen));
    }
    if answer.entries_skipped > 0 {
        notes.push(format!("{} entries could not be opened", answer.entries_skipped));
    }
    if answer.assumed {
        notes.push("a bandwidth is assumed".to_owned());
    }
    notes.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_guessed_and_what_is_unknown() {
        let known = DataAccess {
            data_set: "/d\u{1b}[2J".into(),
            access_usec: 1_500_000,
            cached_bytes: 1 << 20,
            sampled: true,
            entries_seen: 3,
            entries_total: 90,
            assumed: true,
            ..DataAccess::default()
        };
        let unknown =
            DataAccess { data_set: "/x".into(), error: "no such file".into(), ..DataAccess::default() };
        let text = table(&[known, unknown]).to_string();
        for expected in
            ["1.5s", "1.0 MiB", "sampled: 3 files", "a bandwidth is assumed", "no such file", "90"]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
