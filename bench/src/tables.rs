//! The report as people read it.

use bulkhead_proto::rate::bits_per_sec;
use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::{
    alloc,
    churn::{Churn, Leavings},
    isolation::{Row, victim::Measured},
    latency::Summary,
    launch::Burst,
    machine::Machine,
    net::Net,
    offers,
    overhead::{Overhead, Window},
    oversub,
    predict::{Outcome, Score},
    process_cost::ProcessCost,
    report::Report,
    runtimes::Runtimes,
};

/// Everything that was measured.
pub(crate) fn render(report: &Report) -> String {
    let mut parts = vec![machine(&report.machine)];
    parts.extend(report.launch.as_deref().map(launch));
    parts.extend(report.runtimes.as_deref().map(runtimes));
    parts.extend(report.overhead.as_ref().map(overhead));
    parts.extend(report.churn.as_ref().map(churn));
    parts.extend(report.isolation.as_deref().map(isolation));
    parts.extend(report.net.as_ref().map(net));
    parts.extend(report.oversub.as_ref().map(oversub::render));
    parts.extend(report.offers.as_deref().map(offers::render));
    parts.extend(report.alloc.as_deref().map(alloc::render));
    parts.join("\n\n")
}

fn machine(machine: &Machine) -> String {
    let mut text = format!(
        "Linux {} on {}, {} CPUs ({}{}), {}; bulkhead {}, {} build; load {:.2}",
        machine.kernel,
        machine.architecture,
        machine.cpus,
        machine.cpu_model,
        if machine.virtualised { ", virtualised" } else { "" },
        mib(machine.mem_bytes),
        machine.version,
        machine.build,
        machine.load_average,
    );
    if !machine.cgroup_controllers {
        text += "\ncgroup v2 has no cpu and memory controllers here: tasks get no limits but their ports";
    }
    if machine.build == "debug" {
        text += "\na debug build: the figures say little";
    }
    text
}

fn launch(bursts: &[Burst]) -> String {
    let mut rows = Vec::new();
    for burst in bursts {
        for (what, summary) in
            [("accept to RUNNING", &burst.accept_to_running), ("fork+exec", &burst.fork_exec)]
        {
            let times = [summary.min_us, summary.p50_us, summary.p90_us, summary.p99_us, summary.max_us];
            let mut row = vec![burst.tasks.to_string(), what.to_owned(), summary.samples.to_string()];
            row.extend(times.map(ms));
            rows.push(row);
        }
        let agent = &burst.agent_launch;
        let at_most = |us: Option<f64>| us.map_or_else(|| "?".to_owned(), |us| format!("<= {:.1}", us / 1e3));
        rows.push(vec![
            burst.tasks.to_string(),
            format!("in the agent (mean {:.2} ms)", agent.mean_us / 1e3),
            agent.samples.to_string(),
            String::new(),
            at_most(agent.p50_at_most_us),
            String::new(),
            at_most(agent.p99_at_most_us),
            String::new(),
        ]);
        let mut ratio = vec![String::new(); 8];
        (ratio[0], ratio[1]) = (burst.tasks.to_string(), "accept to RUNNING / fork+exec".to_owned());
        (ratio[4], ratio[6]) = (format!("{:.1} x", burst.ratio_p50), format!("{:.1} x", burst.ratio_p99));
        rows.push(ratio);
    }
    table(&["TASKS", "LAUNCH", "SAMPLES", "MIN ms", "P50 ms", "P90 ms", "P99 ms", "MAX ms"], rows)
}

fn overhead(overhead: &Overhead) -> String {
    let row = |window: &Window, who: &str, cost: &ProcessCost| {
        vec![
            window.tasks.to_string(),
            who.to_owned(),
            format!("{:.3}", cost.cpu_percent),
            cost.cgroup_cpu_percent.map_or_else(String::new, |percent| format!("{percent:.3}")),
            mib(cost.resident_bytes),
            mib(cost.resident_peak_bytes),
            cost.threads.to_string(),
            cost.open_files.to_string(),
        ]
    };
    let rows = overhead.windows.iter().flat_map(|window| {
        let own = [("agent", &window.agent), ("master", &window.master)];
        let peers = window.peers.iter().map(|(name, cost)| (*name, cost));
        own.into_iter().chain(peers).map(|(who, cost)| row(window, who, cost)).collect::<Vec<_>>()
    });
    let header = ["TASKS", "IDLE", "CPU %", "CPU % (CGROUP)", "RESIDENT", "PEAK", "THREADS", "OPEN FILES"];
    let Overhead { window_seconds, scrape_seconds, .. } = overhead;
    let table = table(&header, rows.collect());
    format!(
        "{table}\nover {window_seconds} s, metrics fetched every {scrape_seconds} s; 100 % is one CPU. Exporters: those installed \
         of node_exporter and cAdvisor"
    )
}

fn runtimes(sizes: &[Runtimes]) -> String {
    let line = |mib: usize, what: String, summary: &Summary, ratio: String| {
        let times = [summary.min_us, summary.p50_us, summary.p99_us].map(ms);
        let mut cells = vec![mib.to_string(), what];
        cells.extend(times);
        cells.push(ratio);
        cells
    };
    let mut lines = Vec::new();
    for size in sizes {
        let mib = size.resident_mib;
        lines.push(line(mib, "launch to exec".to_owned(), &size.launch_to_exec, String::new()));
        lines.push(line(mib, "launch to known".to_owned(), &size.launch_to_known, String::new()));
        lines.push(line(mib, "launch to gone".to_owned(), &size.launch_to_gone, String::new()));
        for runtime in &size.runtimes {
            let what = format!("{} run{}", runtime.name, if runtime.cgroup { "" } else { ", no cgroup" });
            lines.push(line(mib, what, &runtime.run, format!("{:.2} x", runtime.launch_ratio_p50)));
        }
    }
    table(&["RESIDENT MiB", "BY", "MIN ms", "P50 ms", "P99 ms", "EXEC / RUN"], lines)
}

fn churn(churn: &Churn) -> String {
    let parts = |left: &Leavings| {
        [left.task_cgroups, left.mounts, left.agent_descriptors, left.agent_zombies, left.bpf_map_entries]
    };
    let names = ["cgroups of tasks", "mounts", "descriptors", "zombies", "BPF map entries"];
    let counts = parts(&churn.before).into_iter().zip(parts(&churn.after));
    let rows: Vec<_> = names.into_iter().zip(counts).collect();
    let row = |(what, (before, after)): (&str, (usize, usize))| {
        vec![String::new(), what.to_owned(), before.to_string(), after.to_string()]
    };
    let rows: Vec<_> = rows.into_iter().map(row).collect();
    let end = &churn.accept_to_end;
    format!(
        "{} short tasks, {} at once: {:.0} a second; accept to end p50 {} ms, p99 {} ms\n{}",
        churn.tasks,
        churn.at_once,
        churn.tasks_per_second,
        ms(end.p50_us),
        ms(end.p99_us),
        table(&["", "LEFT", "BEFORE", "AFTER"], rows)
    )
}

fn isolation(rows: &[Row]) -> String {
    let line = |victim: &str, beside: &str, measured: &Measured| {
        let times = [measured.p50_us, measured.p99_us].map(ms);
        let mut cells = vec![victim.to_owned(), beside.to_owned()];
        cells.extend(times);
        cells.push(format!("{:.0}", measured.per_second));
        cells
    };
    let mut lines = Vec::new();
    for row in rows {
        let victim = row.victim.name();
        lines.push(line(&victim, "alone", &row.alone));
        for pair in &row.beside {
            let antagonist = pair.antagonist.name();
            lines.push(line(&victim, &antagonist, &pair.bare));
            lines.push(line(&victim, &format!("{antagonist}, isolated"), &pair.isolated));
        }
    }
    table(&["VICTIM", "BESIDE", "P50 ms", "P99 ms", "A SECOND"], lines)
}

fn net(net: &Net) -> String {
    let pacing = net.pacing.iter().map(|paced| {
        let (asked, measured) = (paced.asked_bits_per_sec, paced.measured_bits_per_sec);
        let error = format!("{:+.3} %", paced.error_percent);
        vec![bits_per_sec(asked), paced.shaper.name().to_owned(), measured.to_string(), error]
    });
    let trips = net.round_trips.iter().map(|trips| {
        let times = [trips.latency.p50_us, trips.latency.p99_us, trips.latency.max_us].map(ms);
        [vec![trips.latency.samples.to_string(), trips.shaper.name().to_owned()], times.to_vec()].concat()
    });
    let throughput = net.throughput.iter().map(|one| {
        let ratio = format!("{:.1} %", one.on_percent_of_off);
        let rates = [one.off_bits_per_sec, one.on_bits_per_sec].map(bits_per_sec);
        [vec![String::new(), one.path.to_owned()], rates.to_vec(), vec![ratio]].concat()
    });
    let programs = net.programs.iter().map(|one| {
        let ns = format!("{:.1}", one.ns_per_run);
        vec![one.runs.to_string(), one.work.name().to_owned(), one.program.clone(), ns]
    });
    let mut parts = vec![
        table(&["RATE", "PACED BY", "MEASURED bit/s", "ERROR"], pacing.collect()),
        table(&["REQUESTS", "BESIDE BULK, BY", "P50 ms", "P99 ms", "MAX ms"], trips.collect()),
        table(&["", "IPERF3 OVER", "OFF", "ON", "ON / OFF"], throughput.collect()),
        table(&["RUNS", "WHILE", "BPF PROGRAM", "ns A RUN"], programs.collect()),
    ];
    parts.extend(net.skipped.iter().map(|why| format!("left out: {why}")));
    parts.join("\n\n")
}

/// One predictor, file by file, or all of them.
pub(crate) fn predictions(outcome: &Outcome) -> String {
    let row = |name: &str, score: &Score| {
        let too_low = format!("{:.2} %", score.violation_rate * 100.0);
        vec![name.to_owned(), score.predictions.to_string(), too_low, format!("{:.3}", score.margin)]
    };
    match outcome {
        Outcome::One(one) => {
            let files = one.files.iter().map(|file| row(&file.file, &file.score));
            let rows = files.chain([row("all", &one.all)]).collect();
            let table = table(&["FILE", "PREDICTIONS", "TOO LOW", "MARGIN"], rows);
            format!("{}, {} tasks a machine\n{table}", one.predictor, one.tasks_per_machine)
        }
        Outcome::Compared { predictors } => table(
            &["PREDICTOR", "PREDICTIONS", "TOO LOW", "MARGIN"],
            predictors.iter().map(|one| row(one.predictor, &one.all)).collect(),
        ),
    }
}

pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty().set_header(header);
    table.add_rows(rows.into_iter().map(|row| {
        let align = |(n, text): (usize, String)| {
            Cell::new(text).set_alignment(if n == 1 { CellAlignment::Left } else { CellAlignment::Right })
        };
        row.into_iter().enumerate().map(align).collect::<Vec<_>>()
    }));
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Microseconds as milliseconds.
pub(crate) fn ms(us: u64) -> String {
    format!("{}.{:03}", us / 1000, us % 1000)
}

pub(crate) fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::agent_metrics::AgentLaunches;

    fn report() -> Report {
        let summary = |p50_us| Summary {
            samples: 200,
            min_us: 1,
            mean_us: 2.0,
            p50_us,
            p90_us: 4,
            p99_us: 5,
            max_us: 6,
        };
        let agent = AgentLaunches {
            samples: 200,
            mean_us: 1500.0,
            p50_at_most_us: Some(2000.0),
            p99_at_most_us: None,
        };
        let burst = Burst {
            tasks: 1,
            bursts: 200,
            accept_to_running: summary(4321),
            fork_exec: summary(500),
            ratio_p50: 8.6,
            ratio_p99: 1.0,
            agent_launch: agent,
        };
        let cost = ProcessCost {
            cpu_percent: 0.125,
            cgroup_cpu_percent: None,
            resident_bytes: 10 << 20,
            resident_peak_bytes: 11 << 20,
            threads: 7,
            open_files: 30,
        };
        let peers = BTreeMap::from([("node_exporter", cost.clone())]);
        let window = Window { tasks: 100, agent: cost.clone(), master: cost, peers };
        Report {
            machine: Machine::read().unwrap(),
            launch: Some(vec![burst]),
            overhead: Some(Overhead { window_seconds: 30, scrape_seconds: 15, windows: vec![window] }),
            runtimes: None,
            churn: None,
            isolation: None,
            net: None,
            oversub: None,
            offers: None,
            alloc: None,
        }
    }

    #[test]
    fn tables_show_milliseconds_ratios_and_costs() {
        let text = render(&report());
        for words in ["4.321", "8.6 x", "<= 2.0", "0.125", "10.0 MiB", "over 30 s", "node_exporter"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn json_has_units_in_its_names() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["launch"][0]["accept_to_running"]["p50_us"], 4321);
        assert_eq!(json["overhead"]["windows"][0]["agent"]["resident_bytes"], 10 << 20);
        assert!(json["machine"]["mem_bytes"].as_u64().unwrap() > 0);
        assert!(json["overhead"]["windows"][0]["master"].get("cgroup_cpu_percent").is_none());
    }
}
