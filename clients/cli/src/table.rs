//! Lists as people read them: one line a thing, columns that line up, no lines drawn.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use bulkhead_proto::{
    explain::{
        Line,
        framework::{amount, percent},
    },
    v1::{
        AgentEntry, DataAccess, Event, EventKind, FrameworkEntry, NodePressure, Offer, Protocol, Resources,
        RoleEntry, Task, TaskState,
    },
};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

use crate::{
    quantity::{ago, cpu_number, port_list, size},
    run::outcome::reason_words,
    task_ref::is_terminal,
};

/// What the tables need to know about the moment and the reader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) now_unix_ms: u64,
    pub(crate) color: bool,
}

impl View {
    /// Tasks, one line each.
    pub(crate) fn tasks(&self, tasks: &[Task]) -> String {
        let header = ["TASK", "NAME", "STATE", "CLASS", "CPU", "MEM", "PORTS", "AGENT", "STARTED"];
        self.table(&header, tasks.iter().map(|t| self.task_row(t)))
    }

    fn task_row(&self, task: &Task) -> Vec<Cell> {
        let spec = task.spec.clone().unwrap_or_default();
        let grant = spec.grant.unwrap_or_default();
        let has = grant.resources.clone().unwrap_or_default();
        let status = task.status.clone().unwrap_or_default();
        let state = Cell::new(state_text(&status)).fg(state_color(status.state()));
        vec![
            Cell::new(spec.task_id),
            Cell::new(spec.name),
            state,
            Cell::new(lower(grant.class().as_str_name(), "RESOURCE_CLASS_")),
            Cell::new(cpu_number(has.cpu_milli)),
            Cell::new(size(has.mem_bytes)),
            Cell::new(port_list(&has)),
            Cell::new(short(&task.agent_id)),
            Cell::new(ago(self.now_unix_ms, task.started_unix_ms)),
        ]
    }

    /// Agents with what each has, in parts that add up.
    pub(crate) fn agents(&self, agents: &[AgentEntry]) -> String {
        let header = [
            "AGENT",
            "HOST",
            "STATE",
            "CPU FREE/ALL",
            "MEM FREE/ALL",
            "PORTS FREE",
            "LENDABLE CPU",
            "PRESSURE",
            "CPU WAIT P99",
            "TASKS",
            "API",
            "SINCE",
        ];
        self.table(&header, agents.iter().map(|a| self.agent_row(a)))
    }

    fn agent_row(&self, entry: &AgentEntry) -> Vec<Cell> {
        let info = entry.agent.clone().unwrap_or_default();
        let report = entry.report.clone().unwrap_or_default();
        let (all, free) = (report.capacity.unwrap_or_default(), report.free.unwrap_or_default());
        let enforced = report.enforced.unwrap_or_default();
        let mark = |kind: String, enforced: bool, any: u64| match (any, enforced) {
            (0, _) => "-".to_owned(),
            (_, true) => kind,
            (_, false) => format!("{kind} (not enforced)"),
        };
        let cpu = format!("{}/{}", cpu_number(free.cpu_milli), cpu_number(all.cpu_milli));
        let mem = format!("{}/{}", size(free.mem_bytes), size(all.mem_bytes));
        let (state, color) =
            if entry.connected { ("connected", Color::Green) } else { ("away", Color::Yellow) };
        vec![
            Cell::new(short(&info.agent_id)),
            Cell::new(info.hostname),
            Cell::new(state).fg(color),
            Cell::new(mark(cpu, enforced.cpu, all.cpu_milli)),
            Cell::new(mark(mem, enforced.mem, all.mem_bytes)),
            Cell::new(port_list(&free)),
            Cell::new(cpu_number(report.revocable_cpu_milli)),
            Cell::new(pressure_text(report.pressure.as_ref())),
            Cell::new(report.runqueue_p99_usec.map_or_else(|| "-".to_owned(), micros)),
            Cell::new(entry.task_count),
            Cell::new(info.api_address),
            Cell::new(ago(self.now_unix_ms, entry.registered_unix_ms)),
        ]
    }

    /// Offers that are out.
    pub(crate) fn offers(&self, offers: &[Offer]) -> String {
        let header = ["OFFER", "FRAMEWORK", "HOST", "CLASS", "CPU", "MEM", "PORTS", "ENFORCED", "DATA"];
        self.table(&header, offers.iter().map(offer_row))
    }

    /// Frameworks, connected and not.
    pub(crate) fn frameworks(&self, frameworks: &[FrameworkEntry]) -> String {
        let header = ["FRAMEWORK", "NAME", "ROLE", "STATE", "TASKS", "OFFERS", "SINCE"];
        let row = |f: &FrameworkEntry| {
            let (state, color) = match (f.connected, f.detached) {
                (_, true) => ("detached", Color::Cyan),
                (true, _) => ("connected", Color::Green),
                (false, _) => ("away", Color::Yellow),
            };
            vec![
                Cell::new(&f.framework_id),
                Cell::new(&f.name),
                Cell::new(&f.role),
                Cell::new(state).fg(color),
                Cell::new(f.task_count),
                Cell::new(f.offer_count),
                Cell::new(ago(self.now_unix_ms, f.registered_unix_ms)),
            ]
        };
        self.table(&header, frameworks.iter().map(row))
    }

    /// Roles: what each was given, and what it holds.
    pub(crate) fn roles(&self, roles: &[RoleEntry]) -> String {
        let header = ["ROLE", "WEIGHT", "PRIORITY", "LIMIT", "GUARANTEE", "HELD", "SHARE", "FRAMEWORKS"];
        let row = |role: &RoleEntry| {
            let mut row = role_cells(role);
            row.push(Cell::new(amounts_text(&role.held)));
            row.push(Cell::new(percent(role.dominant_share)));
            row.push(Cell::new(role.framework_count));
            row
        };
        self.table(&header, roles.iter().map(row))
    }

    /// What was said of a role.
    pub(crate) fn role_settings(&self, role: &RoleEntry) -> String {
        self.table(&["ROLE", "WEIGHT", "PRIORITY", "LIMIT", "GUARANTEE"], std::iter::once(role_cells(role)))
    }

    /// Where the numbers of an agent or of a framework's offers come from, one line each.
    pub(crate) fn explanation(&self, lines: &[Line]) -> String {
        let row =
            |l: &Line| vec![Cell::new(&l.what), Cell::new(l.part), Cell::new(&l.amount), Cell::new(&l.why)];
        self.table(&["OF", "PART", "AMOUNT", "WHY"], lines.iter().map(row))
    }

    /// Events, oldest first.
    pub(crate) fn events(&self, events: &[Event]) -> String {
        let header = ["LAST", "TASK", "EVENT", "COUNT", "WHAT"];
        self.table(&header, events.iter().map(|e| self.event_row(e)))
    }

    fn event_row(&self, event: &Event) -> Vec<Cell> {
        vec![
            Cell::new(ago(self.now_unix_ms, event.last_unix_ms)),
            Cell::new(&event.task_id),
            Cell::new(event_text(event)).fg(Color::Yellow),
            Cell::new(event.count),
            Cell::new(&event.message),
        ]
    }

    fn table(&self, header: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(Cell::new)).add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

fn role_cells(role: &RoleEntry) -> Vec<Cell> {
    let settings = role.settings.clone().unwrap_or_default();
    vec![
        Cell::new(&role.role),
        Cell::new(settings.weight),
        Cell::new(settings.priority),
        Cell::new(amounts_text(&settings.limit)),
        Cell::new(amounts_text(&settings.guarantee)),
    ]
}

/// `CPU 4`, `memory 8 GiB`, one a line.
fn amounts_text(amounts: &BTreeMap<String, u64>) -> String {
    let lines: Vec<_> = amounts.iter().map(|(kind, &of)| amount(kind, of)).collect();
    if lines.is_empty() { "-".to_owned() } else { lines.join("\n") }
}

fn offer_row(offer: &Offer) -> Vec<Cell> {
    let has = offer.resources.clone().unwrap_or_default();
    let agent = offer.agent.clone().unwrap_or_default();
    vec![
        Cell::new(&offer.offer_id),
        Cell::new(&offer.framework_id),
        Cell::new(agent.hostname),
        Cell::new(lower(offer.class().as_str_name(), "RESOURCE_CLASS_")),
        Cell::new(cpu_number(has.cpu_milli)),
        Cell::new(size(has.mem_bytes)),
        Cell::new(port_list(&has)),
        Cell::new(enforced_text(offer, &has)),
        Cell::new(data_text(&offer.data_access)),
    ]
}

/// Data sets in a cell; the others are counted, and in the JSON.
const DATA_SETS_SHOWN: usize = 4;

/// `1.5s /data/logs`, one a line: what it costs to read each data set from there, or why that is not known.
fn data_text(all: &[DataAccess]) -> String {
    // Names come from anywhere; what they do to a terminal does not.
    let line = |access: &DataAccess| {
        let name = access.data_set.escape_debug();
        if !access.error.is_empty() {
            return format!("? {name}: {}", access.error.escape_debug());
        }
        let about = if access.sampled || access.assumed { "~" } else { "" };
        let cost = Duration::from_millis(access.access_usec.div_ceil(1000));
        format!("{about}{} {name}", humantime::format_duration(cost))
    };
    let mut lines: Vec<_> = all.iter().take(DATA_SETS_SHOWN).map(line).collect();
    if all.len() > DATA_SETS_SHOWN {
        lines.push(format!("and {} more", all.len() - DATA_SETS_SHOWN));
    }
    if lines.is_empty() { "-".to_owned() } else { lines.join("\n") }
}

/// `cpu 12%, io 3%`: where processes stood still; `none` where they nowhere did for a hundredth of the time.
fn pressure_text(pressure: Option<&NodePressure>) -> String {
    let Some(p) = pressure else { return "-".to_owned() };
    let kinds = [("cpu", p.cpu_some_permille), ("mem", p.mem_some_permille), ("io", p.io_some_permille)];
    let felt = kinds.iter().filter(|(_, permille)| *permille >= 10);
    let texts: Vec<_> = felt.map(|(kind, permille)| format!("{kind} {}%", permille / 10)).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// `16us`, `4.1ms`, `1.0s`.
fn micros(usec: u64) -> String {
    match usec {
        0..1000 => format!("{usec}us"),
        1000..1_000_000 => format!("{}.{}ms", usec / 1000, usec / 100 % 10),
        _ => format!("{}.{}s", usec / 1_000_000, usec / 100_000 % 10),
    }
}

/// The offered kinds that the kernel holds, or which of them it does not.
fn enforced_text(offer: &Offer, has: &Resources) -> String {
    let by = offer.enforced.unwrap_or_default();
    let kinds = [
        ("cpu", has.cpu_milli > 0, by.cpu),
        ("mem", has.mem_bytes > 0, by.mem),
        ("ports", !has.ports.is_empty(), by.ports),
    ];
    let loose: Vec<&str> = kinds.iter().filter(|k| k.1 && !k.2).map(|k| k.0).collect();
    if loose.is_empty() { "all".to_owned() } else { format!("not {}", loose.join(", ")) }
}

/// `RUNNING`, `FAILED (exit code 3)`, `FAILED (out of memory)`.
fn state_text(status: &bulkhead_proto::v1::TaskStatus) -> String {
    let state = status.state().as_str_name().trim_start_matches("TASK_STATE_").to_owned();
    let why = match (status.exit_code, status.signal, reason_words(status.reason())) {
        _ if !is_terminal(status.state()) || status.state() == TaskState::Finished => None,
        (Some(code), ..) => Some(format!("exit code {code}")),
        (_, _, Some(words)) => Some(words.to_owned()),
        (_, Some(signal), _) => Some(format!("signal {signal}")),
        _ => None,
    };
    why.map_or_else(|| state.clone(), |why| format!("{state} ({why})"))
}

fn state_color(state: TaskState) -> Color {
    match state {
        TaskState::Running => Color::Green,
        TaskState::Staging => Color::Cyan,
        TaskState::Failed | TaskState::Lost | TaskState::Rejected => Color::Red,
        TaskState::Killed => Color::Yellow,
        TaskState::Finished | TaskState::Unspecified => Color::Reset,
    }
}

/// `port 8080 refused (tcp, IPv4)`, `out of memory`, `process limit`.
pub(crate) fn event_text(event: &Event) -> String {
    match event.kind() {
        EventKind::PortDenied => {
            let protocol = match event.protocol() {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
                Protocol::Unspecified => return "socket refused".to_owned(),
            };
            let port = match event.port {
                0 => "port of the kernel's choice".to_owned(),
                port => format!("port {port}"),
            };
            format!("{port} refused ({protocol}, IPv{})", event.ip_version)
        }
        EventKind::OutOfMemory => "killed at the memory limit".to_owned(),
        EventKind::PidsLimit => "fork refused at the process limit".to_owned(),
        EventKind::DeviceDenied => "device refused".to_owned(),
        EventKind::PeerDenied => "peer refused".to_owned(),
        EventKind::DiskFull => "write refused at the disk limit".to_owned(),
        EventKind::OutputTruncated => "output cut off at its head".to_owned(),
        EventKind::MemoryStalled => "ended: stood still for memory".to_owned(),
        EventKind::Revoked => "ended: guaranteed tasks needed what it was lent".to_owned(),
        EventKind::Unspecified => format!("kind {}", event.kind),
    }
}

/// The part of a long id that people compare.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn lower(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

/// One event as a line by itself, for streams: the time, the task, what, how often.
pub(crate) fn event_line(event: &Event) -> String {
    let when = UNIX_EPOCH + Duration::from_millis(event.last_unix_ms);
    let when = humantime::format_rfc3339_millis(when);
    let message = if event.message.is_empty() { String::new() } else { format!("  {}", event.message) };
    format!("{when}  {}  {}  x{}{message}", event.task_id, event_text(event), event.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_data_is_a_line_for_each_data_set() {
        let access = |data_set: &str, access_usec| DataAccess {
            data_set: data_set.into(),
            access_usec,
            ..DataAccess::default()
        };
        let unknown = DataAccess { error: "no answer".into(), ..access("/b\u{1b}", 0) };
        let guessed = DataAccess { assumed: true, ..access("/c", 61_000_000) };
        let all =
            [access("/a", 1_500_000), unknown, guessed, access("/d", 0), access("/e", 1), access("/f", 1)];
        assert_eq!(data_text(&all), "1s 500ms /a\n? /b\\u{1b}: no answer\n~1m 1s /c\n0s /d\nand 2 more");
        assert_eq!(data_text(&[]), "-");
    }

    #[test]
    fn only_pressure_that_is_felt_is_named() {
        assert_eq!(pressure_text(None), "-");
        let calm = NodePressure { cpu_some_permille: 9, ..NodePressure::default() };
        assert_eq!(pressure_text(Some(&calm)), "none");
        let busy = NodePressure { cpu_some_permille: 125, io_some_permille: 1000, ..calm };
        assert_eq!(pressure_text(Some(&busy)), "cpu 12%, io 100%");
        assert_eq!([16, 1000, 4194, 1_073_741].map(micros), ["16us", "1.0ms", "4.1ms", "1.0s"]);
    }
}
