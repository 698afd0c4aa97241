//! An agent's provenance in words: one line for each number, and why it is what it is.

use crate::{
    amount::{cpu_number, size},
    rate::bits_per_sec,
    resources::PortSet,
    v1::{
        Enforced, HeldBackFor, KindOrigin, LendingOrigin, NothingLent, NumaNode, PortOrigin, PortRange,
        Provenance,
    },
};

pub mod framework;

/// One number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of what: `CPU`, `memory`; empty where it is that of the line before.
    pub what: String,
    /// Which part of it: `offered`, `granted`, `kept back`, `free`, ...
    pub part: &'static str,
    /// How much, with its unit.
    pub amount: String,
    /// A sentence.
    pub why: String,
}

/// How a kind is called and written, what holds tasks to it, and which setting keeps some of it back.
struct Words {
    kind: &'static str,
    what: &'static str,
    amount: fn(u64) -> String,
    enforced: fn(&Enforced) -> bool,
    setting: &'static str,
}

fn plain(number: u64) -> String {
    number.to_string()
}

fn size_a_second(bytes: u64) -> String {
    format!("{}/s", size(bytes))
}

const WORDS: [Words; 9] = [
    Words {
        kind: "cpu_milli",
        what: "CPU",
        amount: cpu_number,
        enforced: |e| e.cpu,
        setting: "reserve_cpu_milli",
    },
    Words { kind: "mem_bytes", what: "memory", amount: size, enforced: |e| e.mem, setting: "reserve_mem" },
    Words { kind: "disk_bytes", what: "disk", amount: size, enforced: |e| e.disk, setting: "reserve_disk" },
    Words {
        kind: "disk_read_bytes_per_sec",
        what: "from disk",
        amount: size_a_second,
        enforced: |e| e.disk_io,
        setting: "disk_offer_percent",
    },
    Words {
        kind: "disk_write_bytes_per_sec",
        what: "to disk",
        amount: size_a_second,
        enforced: |e| e.disk_io,
        setting: "disk_offer_percent",
    },
    Words {
        kind: "disk_read_ops_per_sec",
        what: "disk reads a second",
        amount: plain,
        enforced: |e| e.disk_io,
        setting: "disk_offer_percent",
    },
    Words {
        kind: "disk_write_ops_per_sec",
        what: "disk writes a second",
        amount: plain,
        enforced: |e| e.disk_io,
        setting: "disk_offer_percent",
    },
    Words {
        kind: "net_egress_bits_per_sec",
        what: "sending",
        amount: bits_per_sec,
        enforced: |e| e.net,
        setting: "net_offer_percent",
    },
    Words {
        kind: "net_ingress_bits_per_sec",
        what: "receiving",
        amount: bits_per_sec,
        enforced: |e| e.net,
        setting: "net_offer_percent",
    },
];

/// All of it. Kinds of which there is nothing are in one line at the end.
pub fn lines(provenance: &Provenance) -> Vec<Line> {
    let mut lines = Vec::new();
    let (there, not): (Vec<_>, Vec<_>) =
        provenance.kinds.iter().partition(|kind| kind.capacity > 0 || kind.allocated > 0);
    for kind in there {
        lines.extend(kind_lines(kind, provenance));
    }
    lines.extend(provenance.ports.iter().flat_map(port_lines));
    lines.extend(provenance.revocable_cpu.iter().flat_map(|lending| lending_lines(lending, provenance)));
    lines.extend(provenance.numa.iter().flat_map(numa_lines));
    let not: Vec<_> =
        not.iter().map(|kind| words(&kind.kind).map_or(kind.kind.as_str(), |w| w.what)).collect();
    if !not.is_empty() {
        let why = format!(
            "{}: there is none, it was not measured, or this kernel does not hold tasks to it (`bulkhead-agent probe`)",
            not.join(", ")
        );
        lines.push(Line { what: "the rest".into(), part: "not offered", amount: "-".into(), why });
    }
    lines
}

fn words(kind: &str) -> Option<&'static Words> {
    WORDS.iter().find(|words| words.kind == kind)
}

/// Parts of one thing: its name is said once.
fn named(what: &str, parts: Vec<(&'static str, String, String)>) -> Vec<Line> {
    let line = |(at, (part, amount, why)): (usize, _)| Line {
        what: if at == 0 { what.to_owned() } else { String::new() },
        part,
        amount,
        why,
    };
    parts.into_iter().enumerate().map(line).collect()
}

fn kind_lines(kind: &KindOrigin, provenance: &Provenance) -> Vec<Line> {
    // A newer agent may offer what this build has no words for.
    let words = words(&kind.kind);
    let what = words.map_or(kind.kind.as_str(), |words| words.what);
    let amount = words.map_or(plain as fn(u64) -> String, |words| words.amount);
    let enforced = words.is_none_or(|w| provenance.enforced.as_ref().is_none_or(|e| (w.enforced)(e)));
    let mut has = "what the machine has, or the settings let the agent offer".to_owned();
    if !enforced {
        has += "; this kernel does not hold tasks to it, and the operator allowed that (allow_unenforced)";
    }
    let mut granted = holders(provenance, kind.kind == "cpu_milli");
    if kind.allocated > kind.capacity {
        granted += "; more than there is now: they were started under other settings";
    }
    let free = if kind.free > 0 { "offered as guaranteed" } else { "nothing is left to be offered" };
    named(
        what,
        vec![
            ("there is", amount(kind.capacity), has),
            ("granted", amount(kind.allocated), granted),
            ("kept back", amount(kind.reserve), kept_back(kind, words, amount)),
            ("free", amount(kind.free), free.to_owned()),
        ],
    )
}

/// `held by 2 guaranteed tasks and 1 revocable task`.
fn holders(provenance: &Provenance, guaranteed_only: bool) -> String {
    let tasks = |count: u64, class: &str| match count {
        1 => format!("1 {class} task"),
        _ => format!("{count} {class} tasks"),
    };
    let (guaranteed, revocable) = (provenance.guaranteed_tasks, provenance.revocable_tasks);
    match (guaranteed, if guaranteed_only { 0 } else { revocable }) {
        (0, 0) => "held by no task".to_owned(),
        (_, 0) => format!("held by {}", tasks(guaranteed, "guaranteed")),
        (0, _) => format!("held by {}", tasks(revocable, "revocable")),
        _ => format!("held by {} and {}", tasks(guaranteed, "guaranteed"), tasks(revocable, "revocable")),
    }
}

fn kept_back(kind: &KindOrigin, words: Option<&Words>, amount: fn(u64) -> String) -> String {
    let (floor, strangers) = (amount(kind.floor), amount(kind.strangers));
    let setting = words.map_or(String::new(), |words| format!(" ({})", words.setting));
    let peak = if kind.kind == "disk_bytes" { "" } else { ", at their peak of the last half minute" };
    let used = format!("{strangers} that is in use and no task's{peak}");
    let mut why = match kind.reserve_for() {
        HeldBackFor::Unspecified => "nothing is set to be kept back, and nobody else uses any".to_owned(),
        HeldBackFor::Floor if kind.strangers == 0 => format!("{floor} as set{setting}"),
        HeldBackFor::Floor => format!("{floor} as set{setting}, which is more than {used}"),
        HeldBackFor::Strangers => format!("{used}, which is more than {floor} as set{setting}"),
        HeldBackFor::StrangersAndFloor => format!("{used}, and on top of it {floor} as set{setting}"),
        HeldBackFor::SlowerLink => "the link is slower than when the agent started, or gone".to_owned(),
        HeldBackFor::SmallerDisk => {
            "the disk is smaller than when the agent started, or cannot be read".to_owned()
        }
        HeldBackFor::Journal => {
            "the journal cannot be written, so nothing is offered: see the agent's log".to_owned()
        }
    };
    if kind.short > 0 {
        why += &format!("; {} more should be, and is granted already", amount(kind.short));
    }
    why
}

fn port_lines(ports: &PortOrigin) -> Vec<Line> {
    let text = |ranges: &[PortRange]| match PortSet::from_ranges(ranges) {
        Ok(set) if !set.is_empty() => set.to_string(),
        _ => "-".to_owned(),
    };
    let mut parts = vec![
        ("there are", text(&ports.capacity), "as set (ports)".to_owned()),
        ("granted", text(&ports.allocated), "held by tasks".to_owned()),
        (
            "kept back",
            text(&ports.strangers),
            "some socket of others holds them, or they are in TIME_WAIT".to_owned(),
        ),
        ("free", text(&ports.free), "offered".to_owned()),
    ];
    if !ports.journal.is_empty() {
        let why = "the journal cannot be written, so nothing is offered: see the agent's log";
        parts.insert(3, ("kept back", text(&ports.journal), why.to_owned()));
    }
    named("ports", parts)
}

fn lending_lines(lending: &LendingOrigin, provenance: &Provenance) -> Vec<Line> {
    let (peak, predicted) = (lending.peak_milli.unwrap_or(0), lending.predicted_milli);
    let peak_text = format!("their peak of the last half minute, {}", cpu_number(peak));
    let guaranteed = match predicted {
        None => format!("{peak_text}; nothing is predicted in the first minutes"),
        Some(predicted) if predicted >= peak => format!(
            "predicted at the peak of the next hour, {} ({}); {peak_text}, is not more",
            cpu_number(predicted),
            lending.predictor
        ),
        Some(predicted) => format!(
            "{peak_text}, which is more than what is predicted, {} ({})",
            cpu_number(predicted),
            lending.predictor
        ),
    };
    let kept = match lending.nothing_lent() {
        NothingLent::Unspecified => "a tenth of what is idle, for bursts of guaranteed tasks",
        NothingLent::NoCpu => "no CPU is offered here",
        NothingLent::NotMeasured => "nothing is lent: nothing was measured yet",
        NothingLent::NotWatched => "nothing is lent: guaranteed tasks were not watched for long enough",
        NothingLent::Full => "nothing is lent: the peaks above leave nothing",
        NothingLent::Journal => "nothing is lent: the journal cannot be written, see the agent's log",
    };
    let lent = holders(&Provenance { guaranteed_tasks: 0, ..provenance.clone() }, false);
    let strangers = "of what is no task's, at its peak of the last half minute";
    let number = cpu_number;
    named(
        "revocable CPU",
        vec![
            ("there is", number(lending.capacity_milli), "the CPU above".to_owned()),
            ("exclusive", number(lending.exclusive_milli), "of tasks with cores of their own".to_owned()),
            ("strangers", number(lending.strangers_milli), strangers.to_owned()),
            ("guaranteed", number(lending.guaranteed_milli), guaranteed),
            ("kept", number(lending.kept_milli), kept.to_owned()),
            (
                "lendable",
                number(lending.lendable_milli),
                "offered as revocable, less what is lent".to_owned(),
            ),
            ("lent", number(lending.lent_milli), lent),
        ],
    )
}

fn numa_lines(node: &NumaNode) -> Vec<Line> {
    let cores = format!(
        "CPUs that no task has for its own; {} whole cores ({} CPUs) could still be exclusive",
        node.free_cores,
        cpu_number(node.free_core_cpu_milli)
    );
    let of = |part: String, all: String| format!("{part} of {all}");
    named(
        &format!("memory node {}", node.node),
        vec![
            ("CPU", of(cpu_number(node.shared_cpu_milli), cpu_number(node.cpu_milli)), cores),
            (
                "memory",
                of(size(node.mem_free_bytes), size(node.mem_bytes)),
                "unused, or a cache that the kernel drops; grants that are not used count as free".to_owned(),
            ),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::SCALARS;

    fn cpu(reserve_for: HeldBackFor) -> KindOrigin {
        KindOrigin {
            kind: "cpu_milli".into(),
            capacity: 4000,
            allocated: 1000,
            reserve: 500,
            free: 2500,
            floor: 100,
            strangers: 450,
            reserve_for: reserve_for.into(),
            short: 0,
        }
    }

    fn told(provenance: &Provenance) -> String {
        let line = |l: &Line| format!("{}|{}|{}|{}\n", l.what, l.part, l.amount, l.why);
        lines(provenance).iter().map(line).collect()
    }

    fn of(kind: KindOrigin) -> String {
        told(&Provenance {
            kinds: vec![kind],
            guaranteed_tasks: 1,
            revocable_tasks: 2,
            ..Provenance::default()
        })
    }

    #[test]
    fn every_kind_has_words() {
        let kinds: Vec<_> = SCALARS.iter().map(|kind| kind.name).collect();
        assert_eq!(WORDS.iter().map(|words| words.kind).collect::<Vec<_>>(), kinds);
    }

    #[test]
    fn each_part_says_why() {
        let text = of(cpu(HeldBackFor::Strangers));
        let expected = [
            "CPU|there is|4|what the machine has, or the settings let the agent offer",
            "|granted|1|held by 1 guaranteed task",
            "|kept back|0.5|0.45 that is in use and no task's, at their peak of the last half minute, which is more \
             than 0.1 as set (reserve_cpu_milli)",
            "|free|2.5|offered as guaranteed",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_reason_has_a_sentence_of_its_own() {
        for (kind, says) in [
            (cpu(HeldBackFor::Floor), "0.1 as set (reserve_cpu_milli), which is more than 0.45"),
            (
                KindOrigin { strangers: 0, ..cpu(HeldBackFor::Floor) },
                "back|0.5|0.1 as set (reserve_cpu_milli)\n",
            ),
            (cpu(HeldBackFor::Unspecified), "nothing is set to be kept back"),
            (cpu(HeldBackFor::StrangersAndFloor), "and on top of it 0.1 as set"),
            (cpu(HeldBackFor::SlowerLink), "slower than when the agent started"),
            (cpu(HeldBackFor::SmallerDisk), "the disk is smaller"),
            (cpu(HeldBackFor::Journal), "journal cannot be written"),
            (KindOrigin { short: 250, ..cpu(HeldBackFor::Floor) }, "; 0.25 more should be"),
            (KindOrigin { free: 0, ..cpu(HeldBackFor::Floor) }, "nothing is left"),
            (KindOrigin { allocated: 5000, ..cpu(HeldBackFor::Floor) }, "more than there is now"),
            (KindOrigin { kind: "gpu".into(), ..cpu(HeldBackFor::Floor) }, "gpu|there is|4000|"),
            (
                KindOrigin { capacity: 0, allocated: 0, ..cpu(HeldBackFor::Floor) },
                "the rest|not offered|-|CPU: there is none",
            ),
        ] {
            let text = of(kind);
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn lending_names_the_larger_peak_and_why_nothing_is_lent() {
        let lending = |peak, predicted, nothing: NothingLent| {
            told(&Provenance {
                revocable_cpu: Some(LendingOrigin {
                    peak_milli: peak,
                    predicted_milli: predicted,
                    predictor: "learned".into(),
                    nothing_lent: nothing.into(),
                    ..LendingOrigin::default()
                }),
                ..Provenance::default()
            })
        };
        for (text, says) in [
            (lending(None, None, NothingLent::NotMeasured), "nothing was measured yet"),
            (lending(Some(100), None, NothingLent::NotWatched), "not watched for long enough"),
            (lending(Some(100), None, NothingLent::Unspecified), "nothing is predicted in the first minutes"),
            (lending(Some(100), Some(200), NothingLent::Full), "the next hour, 0.2 (learned)"),
            (lending(Some(300), Some(200), NothingLent::Unspecified), "0.3, which is more than"),
            (lending(None, None, NothingLent::Journal), "the journal cannot be written"),
            (lending(None, None, NothingLent::NoCpu), "no CPU is offered"),
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn ports_and_nodes_are_lists() {
        let ranges = |text: &str| text.parse::<PortSet>().unwrap().to_ranges();
        let text = told(&Provenance {
            ports: Some(PortOrigin {
                capacity: ranges("31000-31009"),
                strangers: ranges("31003"),
                journal: ranges("31004"),
                ..PortOrigin::default()
            }),
            numa: vec![NumaNode { node: 1, cpu_milli: 4000, shared_cpu_milli: 2000, ..NumaNode::default() }],
            enforced: Some(Enforced::default()),
            kinds: vec![cpu(HeldBackFor::Floor)],
            ..Provenance::default()
        });
        for says in [
            "ports|there are|31000-31009|",
            "|kept back|31003|some socket",
            "|kept back|31004|the journal",
            "|free|-|",
            "memory node 1|CPU|2 of 4|",
            "allow_unenforced",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }
}
