//! The isolation results as a picture: how much slower each victim's slowest hundredth became.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::Row;

const ROW_HEIGHT: u32 = 260;
const WIDTH: u32 = 900;
const BARE: RGBColor = RGBColor(214, 96, 77);
const ISOLATED: RGBColor = RGBColor(67, 147, 195);

/// One bar chart for each victim, one under the other, on a logarithmic scale.
pub(crate) fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let height = ROW_HEIGHT * u32::try_from(rows.len().max(1))?;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    let failed = |e: DrawingAreaErrorKind<_>| anyhow!("draw {}: {e}", path.display());
    root.fill(&WHITE).map_err(failed)?;
    for (area, row) in root.split_evenly((rows.len().max(1), 1)).iter().zip(rows) {
        chart(area, row).map_err(failed)?;
    }
    root.present().map_err(failed)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn chart<'a>(area: &Area<'a>, row: &Row) -> Result<(), DrawError<'a>> {
    let slowdowns: Vec<(String, f64, f64)> = row
        .beside
        .iter()
        .map(|b| (b.antagonist.name(), times(b.bare.p99_us, row), times(b.isolated.p99_us, row)))
        .collect();
    let most = slowdowns.iter().fold(2.0_f64, |most, (_, bare, isolated)| most.max(*bare).max(*isolated));
    let count = slowdowns.len();
    let caption =
        format!("{}: p99 beside an antagonist / p99 alone ({} us)", row.victim.name(), row.alone.p99_us);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(48)
        .build_cartesian_2d(
            0.0..f64::from(u32::try_from(count).unwrap_or(u32::MAX)),
            // Room for the legend above the highest bar.
            (0.5..most * 4.0).log_scale(),
        )?;
    let label = |x: &f64| {
        let middle = (x.fract() - 0.5).abs() < 0.01;
        let name = slowdowns.iter().zip(0_u32..).find(|(_, n)| (f64::from(*n) + 0.5 - x).abs() < 0.01);
        name.filter(|_| middle).map_or_else(String::new, |((name, ..), _)| name.clone())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(4)
        .y_label_formatter(&|times| format!("{times} x"))
        .x_labels(2 * count + 1)
        .x_label_formatter(&label)
        .draw()?;
    for (color, name, left, pick) in
        [(BARE, "no isolation", 0.15, 0), (ISOLATED, "as tasks with grants", 0.5, 1)]
    {
        let bars = slowdowns.iter().zip(0_u32..).map(|((_, bare, isolated), n)| {
            let (x, height) = (f64::from(n) + left, if pick == 0 { *bare } else { *isolated });
            Rectangle::new([(x, 0.5), (x + 0.35, height)], color.filled())
        });
        chart
            .draw_series(bars)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::UpperRight).border_style(BLACK).draw()?;
    Ok(())
}

fn times(p99_us: u64, row: &Row) -> f64 {
    let number = |us: u64| f64::from(u32::try_from(us).unwrap_or(u32::MAX));
    number(p99_us) / number(row.alone.p99_us.max(1))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Antagonist, Beside, Measured, Victim},
        *,
    };

    #[test]
    fn a_picture_names_victims_and_antagonists() {
        let measured = |p99_us| Measured { p50_us: 1, p99_us, max_us: p99_us, per_second: 1.0 };
        let beside = [Antagonist::Cpu, Antagonist::Fork].map(|antagonist| Beside {
            antagonist,
            bare: measured(900),
            isolated: measured(110),
        });
        let row = Row { victim: Victim::Service, alone: measured(100), beside: beside.to_vec() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        draw(&[row.clone(), row], &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for words in ["service", "cpu", "fork", "no isolation"] {
            assert!(svg.contains(words), "{words}");
        }
        draw(&[], &dir.path().join("empty.svg")).unwrap();
    }
}
