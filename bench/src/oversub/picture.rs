//! Latency, throughput and utilisation against the ratio, a line for each set-up.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;

use super::{lab::Setup, point::Point};

const SIZE: (u32, u32) = (760, 420);

/// What a picture shows.
struct Figure {
    file: &'static str,
    caption: &'static str,
    unit: &'static str,
    logarithmic: bool,
    /// The service alone has no batch.
    with_alone: bool,
    value: fn(&Point) -> f64,
}

const FIGURES: [Figure; 3] = [
    Figure {
        file: "latency.svg",
        caption: "p99 of the service",
        unit: "ms",
        logarithmic: true,
        with_alone: true,
        value: |point| point.p99_us / 1e3,
    },
    Figure {
        file: "throughput.svg",
        caption: "work done beside the service",
        unit: "units/s",
        logarithmic: false,
        with_alone: false,
        value: |point| point.batch_units_per_second,
    },
    Figure {
        file: "utilisation.svg",
        caption: "CPU in use",
        unit: "%",
        logarithmic: false,
        with_alone: true,
        value: |point| point.busy_percent,
    },
];

/// Writes all of them into the directory, which is made where it is not there.
pub(crate) fn draw(points: &[Point], dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    for figure in &FIGURES {
        let path = dir.join(figure.file);
        let failed = |e: DrawingAreaErrorKind<_>| anyhow!("draw {}: {e}", path.display());
        let root = SVGBackend::new(&path, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        chart(&root, figure, points).map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn chart<'a>(area: &Area<'a>, figure: &Figure, points: &[Point]) -> Result<(), DrawError<'a>> {
    let shown: Vec<_> =
        points.iter().filter(|point| figure.with_alone || point.setup != Setup::Alone).collect();
    let of = |pick: fn(f64, f64) -> f64, start: f64| {
        shown.iter().map(|point| (figure.value)(point)).fold(start, pick)
    };
    let (least, most) = (of(f64::min, f64::MAX), of(f64::max, f64::MIN_POSITIVE));
    let right = shown.iter().map(|point| point.ratio).fold(1.0, f64::max) * 1.05;
    let mut builder = ChartBuilder::on(area);
    builder.caption(format!("{} ({})", figure.caption, figure.unit), ("sans-serif", 16));
    builder.margin(12).x_label_area_size(36).y_label_area_size(56);
    // One arm for each type that the axis can have.
    if figure.logarithmic {
        let bottom = if least < most { least } else { most } / 2.0;
        lines(
            builder.build_cartesian_2d(0.0..right, (bottom.max(1e-3)..most * 4.0).log_scale())?,
            figure,
            &shown,
        )
    } else {
        lines(builder.build_cartesian_2d(0.0..right, 0.0..most * 1.4)?, figure, &shown)
    }
}

type Chart<'a, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>;

fn lines<'b, Y>(mut chart: Chart<'b, Y>, figure: &Figure, shown: &[&Point]) -> Result<(), DrawError<'b>>
where
    Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    chart.configure_mesh().x_desc("asked for / there is").y_labels(6).light_line_style(TRANSPARENT).draw()?;
    for setup in Setup::ALL {
        let line: Vec<_> = shown
            .iter()
            .filter(|point| point.setup == setup)
            .map(|point| (point.ratio, (figure.value)(point)))
            .collect();
        if line.is_empty() {
            continue;
        }
        let color = color(setup);
        chart.draw_series(line.iter().map(|at| Circle::new(*at, 3, color.filled())))?;
        chart
            .draw_series([PathElement::new(line, color.stroke_width(2))])?
            .label(setup.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
}

fn color(setup: Setup) -> RGBColor {
    match setup {
        Setup::Alone => RGBColor(90, 90, 90),
        Setup::Weights => RGBColor(214, 96, 77),
        Setup::LeastWeight => RGBColor(253, 174, 97),
        Setup::Lent => RGBColor(146, 197, 222),
        Setup::Bulkhead => RGBColor(33, 102, 172),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::point::examples::point, *};

    #[test]
    fn pictures_name_the_setups_that_they_show() {
        let dir = tempfile::tempdir().unwrap();
        let points: Vec<_> = [(0.5, 900), (2.0, 90_000)]
            .iter()
            .flat_map(|(ratio, p99)| [Setup::Alone, Setup::Bulkhead].map(|s| point(*ratio, s, *p99, 40.0)))
            .collect();
        draw(&points, &dir.path().join("new")).unwrap();
        let text = |file| std::fs::read_to_string(dir.path().join("new").join(file)).unwrap();
        assert!(text("latency.svg").contains("alone") && text("latency.svg").contains("bulkhead"));
        assert!(!text("throughput.svg").contains("alone"));
        assert!(!text("utilisation.svg").contains("weights"));
        draw(&[], dir.path()).unwrap();
    }
}
