//! `bulkhead-agent calibrate-disk`: shows what was measured, and writes the model.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bulkhead_agent::{
    config::{Config, DISK_MODEL},
    kernel::{appender::replace_file, block::Disk},
    measure::disk_speed::{
        DiskModel,
        calibrate::{MIN_TIME, STEPS, calibrate},
        model::{Direction, Measured, Order},
    },
};
use bytesize::ByteSize;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

const MODEL_COMMENT: &str = "\
# Made by `bulkhead-agent calibrate-disk`. The agent reads it at its start (--disk-model): both_at_once is offered, less
# what disk_offer_percent keeps back; io_cost goes to io.cost.model and io.cost.qos. Without [io_cost] neither is touched.
";

/// What `calibrate-disk` takes.
#[derive(Args)]
pub(super) struct CalibrateDisk {
    /// A directory on the disk, or a device that is mounted somewhere
    #[arg(value_name = "DEVICE|DIR")]
    target: PathBuf,
    /// Where the model goes [default: <work dir>/disk-model.toml, where the work dir is on the same disk]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long to measure, all in all
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    time: Duration,
    /// The model as JSON on standard output instead of a table
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| format!("{e}: write it like 20s or 2min"))?;
    if time < MIN_TIME {
        return Err(format!("give at least {}", humantime::format_duration(MIN_TIME)));
    }
    Ok(time)
}

#[expect(clippy::print_stdout, reason = "the output of this subcommand")]
pub(super) fn run(args: &CalibrateDisk, config: &Config) -> Result<ExitCode> {
    // Found out first: nobody wants to measure for nothing.
    let out = args.out.clone().or_else(|| in_work_dir(&args.target, config));
    if let Some(directory) = args.out.as_ref().and_then(|out| out.parent())
        && !directory.as_os_str().is_empty()
        && !directory.is_dir()
    {
        bail!("--out: {} is no directory", directory.display());
    }
    let progress = ProgressBar::new(STEPS as u64);
    progress.set_style(ProgressStyle::with_template("{bar:20} {pos}/{len} {msg} {elapsed}")?);
    progress.enable_steady_tick(Duration::from_millis(200));
    let model = calibrate(&args.target, args.time, |step| {
        if !progress.message().is_empty() {
            progress.inc(1);
        }
        progress.set_message(step.to_owned());
    });
    progress.finish_and_clear();
    let model = model?;
    if let Some(out) = &out {
        let text = format!("{MODEL_COMMENT}{}", toml::to_string(&model).context("write the model as TOML")?);
        replace_file(out, text.as_bytes()).with_context(|| format!("write {}", out.display()))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&model)?);
    } else {
        println!("{}", table(&model));
        show_use(&model, config);
    }
    match out {
        Some(out) => {
            tracing::info!(file = %out.display(), "wrote the model; the agent takes it at its next start")
        }
        None => tracing::warn!(
            "no model was written: {} is not on this disk; name a file with --out",
            config.work_dir.display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// The model's usual place, where it would be the model of the right disk.
fn in_work_dir(target: &Path, config: &Config) -> Option<PathBuf> {
    let measured =
        bulkhead_agent::kernel::block::directory_on(target).and_then(|dir| Disk::below(&dir)).ok()?;
    let used = Disk::below(&config.work_dir).ok()?;
    (measured == used).then(|| config.work_dir.join(DISK_MODEL))
}

fn table(model: &DiskModel) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["REQUESTS", "SIZE", "DEPTH", "BYTES/S", "OPS/S", "P50", "P95", "P99", "MAX"]);
    for measured in &model.measured {
        let figures = &measured.figures;
        let usec = |usec: u64| humantime::format_duration(Duration::from_micros(round(usec))).to_string();
        table.add_row([
            name(measured),
            ByteSize(measured.load.bytes.into()).to_string(),
            measured.depth.to_string(),
            ByteSize(figures.bytes_per_sec).to_string(),
            figures.ops_per_sec.to_string(),
            usec(figures.p50_usec),
            usec(figures.p95_usec),
            usec(figures.p99_usec),
            usec(figures.max_usec),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn name(measured: &Measured) -> String {
    let order = match measured.load.order {
        Order::Sequential => "sequential",
        Order::Random => "random",
    };
    let (direction, other) = match measured.load.direction {
        Direction::Read => ("reads", "writes"),
        Direction::Write => ("writes", "reads"),
    };
    let beside = if measured.load.mixed { format!(", beside {other}") } else { String::new() };
    format!("{order} {direction}{beside}")
}

/// Two digits say what a percentile can say.
fn round(usec: u64) -> u64 {
    let mut unit = 1;
    while usec / unit >= 100 {
        unit *= 10;
    }
    (usec + unit / 2) / unit * unit
}

#[expect(clippy::print_stdout, reason = "the output of this subcommand")]
fn show_use(model: &DiskModel, config: &Config) {
    let percent = u64::from(config.disk_offer_percent);
    let of = |rate: u64| rate.saturating_mul(percent) / 100;
    let rates = &model.both_at_once;
    println!(
        "\noffered of {} ({percent} %): reads {}/s and {} a second, writes {}/s and {} a second",
        model.disk,
        ByteSize(of(rates.read_bytes_per_sec)),
        of(rates.read_ops_per_sec),
        ByteSize(of(rates.write_bytes_per_sec)),
        of(rates.write_ops_per_sec),
    );
    if let Some(lines) = &model.io_cost {
        println!("io.cost.model: {}\nio.cost.qos:   {}", lines.model, lines.qos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_shown_with_two_digits() {
        assert_eq!([0, 7, 99, 123, 9_999, 123_456].map(round), [0, 7, 99, 120, 10_000, 120_000]);
    }

    #[test]
    fn times_are_checked() {
        assert_eq!(time("2s"), Ok(Duration::from_secs(2)));
        assert!(time("10ms").unwrap_err().contains("at least 1s"));
        assert!(time("soon").unwrap_err().contains("20s"));
    }
}
