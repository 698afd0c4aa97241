//! The points as CSV, one line each; units are in the names.

use super::point::Point;

const HEADER: &str = "ratio,setup,p50_us,p99_us,p999_us,p99_least_us,p99_most_us,requests_per_second,unanswered,\
                      batch_units_per_second,busy_percent,corrections,rounds";

/// With a header.
pub(crate) fn text(points: &[Point]) -> String {
    let lines = points.iter().map(|point| {
        let [least, most] = point.p99_range_us;
        format!(
            "{},{},{},{},{},{least},{most},{:.1},{},{:.1},{:.1},{},{}\n",
            point.ratio,
            point.setup.name(),
            point.p50_us,
            point.p99_us,
            point.p999_us,
            point.requests_per_second,
            point.unanswered,
            point.batch_units_per_second,
            point.busy_percent,
            point.corrections,
            point.rounds.len(),
        )
    });
    format!("{HEADER}\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{lab::Setup, point::examples::point},
        *,
    };

    #[test]
    fn lines_have_as_many_fields_as_the_header() {
        let text = text(&[point(1.25, Setup::LeastWeight, 1000, 81.26)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "1.25,least-weight,250,1000,2000,1000,1000,100.0,0,7.5,81.3,2,1");
        assert_eq!(lines[0].matches(',').count(), lines[1].matches(',').count());
    }
}
