//! The chart of cost against scale, as SVG that can be read on light and on dark ground.

use std::fmt::Write as _;

use crate::report::Point;

/// The size of the picture.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Where the bars stand.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 616.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = 288.0;

/// The head of the picture, with what depends on the ground that it is seen on.
const HEAD: &str = r"<style>
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .small { font-size: 12px; fill: #57606a }
  .line { stroke: #d0d7de; stroke-width: 1 }
  .service { fill: #0969da }
  .postgres { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .line { stroke: #3d444d }
    .service { fill: #4493f8 }
    .postgres { fill: #db6d28 }
  }
</style>
";

/// Draws what an uncached check costs at each size of the database: a bar for each, of which the service is one part and
/// Postgres the other.
pub fn draw(points: &[Point], about: &str) -> String {
    let most = points.iter().map(|point| point.service + point.postgres).fold(1.0, f64::max);
    let step = step(most / 4.0);
    let scale = (BOTTOM - TOP) / (most / step).ceil() / step;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
        aria-label=\"Processor time of an uncached check by the number of subscriptions\">\n{HEAD}"
    );
    // Writing into a string does not fail.
    let mut text = |class: &str, (x, y): (f64, f64), anchor: &str, text: &str| {
        let _ =
            writeln!(picture, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    };
    text("title", (16.0, 24.0), "start", "What a check costs that the cache does not answer");
    text("small", (16.0, 44.0), "start", "processor time in µs, by the subscriptions in the database");
    text("small", (RIGHT, 24.0), "end", "service");
    text("small", (RIGHT, 44.0), "end", "Postgres");
    text("small", (16.0, HEIGHT - 12.0), "start", about);
    let mut line = 0.0;
    while line * scale <= BOTTOM - TOP + 0.5 {
        text("small", (LEFT - 8.0, BOTTOM - line * scale + 4.0), "end", &format!("{line:.0}"));
        line += step;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let place = (RIGHT - LEFT) / points.len().max(1) as f64;
    let mut middle = LEFT + place / 2.0;
    for point in points {
        let (service, postgres) = (point.service * scale, point.postgres * scale);
        let total = point.service + point.postgres;
        text("", (middle, BOTTOM - service - postgres - 8.0), "middle", &format!("{total:.0} µs"));
        text("", (middle, BOTTOM + 20.0), "middle", &words(point.subscriptions));
        text("small", (middle, BOTTOM + 38.0), "middle", &format!("p50 {:.0} µs", point.latency));
        middle += place;
    }
    let mut top = 0.0;
    while top * scale <= BOTTOM - TOP + 0.5 {
        let y = BOTTOM - top * scale;
        let _ = writeln!(picture, r#"<line class="line" x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}"/>"#);
        top += step;
    }
    let mut bar = |class: &str, x: f64, y: f64, width: f64, height: f64| {
        let _ = writeln!(
            picture,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        );
    };
    bar("service", RIGHT - 74.0, 14.0, 12.0, 12.0);
    bar("postgres", RIGHT - 74.0, 34.0, 12.0, 12.0);
    let (mut left, width) = (LEFT + place * 0.3, place * 0.4);
    for point in points {
        let (service, postgres) = (point.service * scale, point.postgres * scale);
        bar("service", left, BOTTOM - service, width, service);
        bar("postgres", left, BOTTOM - service - postgres, width, postgres);
        left += place;
    }
    picture.push_str("</svg>\n");
    picture
}

/// A round number, no smaller than this: 1, 2 or 5 and zeros.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1.0).log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power).find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// A large round number in words.
fn words(number: f64) -> String {
    match number {
        1e6.. => format!("{:.0} million", number / 1e6),
        1e3.. => format!("{:.0} thousand", number / 1e3),
        _ => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_are_as_high_as_the_figures_say() {
        let point = |subscriptions, service| Point { subscriptions, service, postgres: 100.0, latency: 500.0 };
        let picture = draw(&[point(1e4, 50.0), point(1e7, 100.0)], "of a test");
        let heights = |class: &str| -> Vec<f64> {
            let bars = picture.lines().filter(|line| line.starts_with(&format!("<rect class=\"{class}\"")));
            let height = |line: &str| line.split("height=\"").nth(1)?.split('"').next()?.parse().ok();
            // The first is in the legend.
            bars.skip(1).filter_map(height).collect()
        };
        let (service, postgres) = (heights("service"), heights("postgres"));
        assert_eq!((service.len(), postgres.len()), (2, 2));
        assert!((service[1] - 2.0 * service[0]).abs() < 0.2, "{service:?}");
        assert!((postgres[0] - service[1]).abs() < 0.2, "{postgres:?} {service:?}");
        assert!(service[1] + postgres[1] <= BOTTOM - TOP);
        for text in ["10 thousand", "10 million", "150 µs", "200 µs", "p50 500 µs", "of a test", "</svg>"] {
            assert!(picture.contains(text), "{text}");
        }
    }

    #[test]
    fn a_step_is_round() {
        assert_eq!([1.0, 1.5, 7.0, 30.0, 50.0].map(|least| step(least).to_string()), ["1", "2", "10", "50", "50"]);
    }
}
