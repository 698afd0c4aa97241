//! The table that people read.

use comfy_table::{
    Attribute, Cell, Color, ContentArrangement, Table, modifiers::UTF8_ROUND_CORNERS, presets,
};

use crate::{line::Line, screen::Screen};

const HEADER: [&str; 5] = ["ASKED", "GRANTED", "MEASURED", "REFUSED BY THE KERNEL", "HELD"];

/// All lines, and one that sums them up.
pub(crate) fn render(lines: &[Line], screen: &Screen) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL).apply_modifier(UTF8_ROUND_CORNERS);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(screen.width);
    if screen.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(HEADER.map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    table.add_rows(lines.iter().map(row));
    let held = lines.iter().filter(|line| line.held()).count();
    let all = lines.len();
    let sum =
        if held == all { format!("all {all} lines held") } else { format!("{held} of {all} lines held") };
    format!("{table}\n{sum}")
}

fn row(line: &Line) -> Vec<Cell> {
    let measured = if line.held() { line.measured.clone() } else { broken(line) };
    let held = if line.held() { Cell::new("yes").fg(Color::Green) } else { Cell::new("NO").fg(Color::Red) };
    vec![
        Cell::new(&line.asked),
        Cell::new(&line.granted),
        Cell::new(measured),
        Cell::new(&line.refused),
        held.add_attribute(Attribute::Bold),
    ]
}

fn broken(line: &Line) -> String {
    let all = std::iter::once(&line.measured).chain(&line.broken);
    all.filter(|words| !words.is_empty()).cloned().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_hold_is_said_in_its_line_and_below() {
        let good = Line::new("web", "run web".into(), "port 31000".into());
        let mut bad = Line::new("cpu", "run cpu".into(), "0.5 CPU".into());
        bad.measured("0.9 CPU").check(false, || "more than granted".into());
        let screen = Screen { color: false, width: 120, quiet: false };
        let text = render(&[good, bad], &screen);
        assert!(text.contains("more than granted") && text.contains("0.9 CPU"), "{text}");
        assert!(text.ends_with("1 of 2 lines held"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
}
