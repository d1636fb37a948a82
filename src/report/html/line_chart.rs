//! Line charts with markers and labels beside the lines.

use super::{
    axis::{Axis, Domain},
    colour::series,
    escape::Escaped,
};

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct LineChart {
    /// What it shows.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines; each is named at its end.
    pub series: Vec<Series>,
}

/// One line of a [`LineChart`].
#[derive(Clone, Debug)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its points in drawing order.
    pub points: Vec<Point>,
}

/// One point of a [`Series`].
#[derive(Clone, Debug)]
pub struct Point {
    /// Value on the horizontal axis.
    pub x: f64,
    /// Value on the vertical axis.
    pub y: f64,
    /// Text beside the marker; may be empty.
    pub label: String,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 570.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 330.0;

impl LineChart {
    pub(super) fn render(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|p| self.shows(p));
        let x = Domain::roomy(self.x.scale, points().map(|p| p.x));
        let y = Domain::roomy(self.y.scale, points().map(|p| p.y));
        let title = Escaped(&self.title);
        let mut svg = format!(
            "<figure><figcaption>{title}</figcaption>\n<div class=\"scroll\"><svg class=\"wide\" \
             role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n"
        );
        svg += &self.frame(&x, &y);
        let mut taken: Vec<Label> = Vec::new();
        let mut texts = String::new();
        let mut ends = Vec::new();
        for (index, line) in self.series.iter().enumerate() {
            let class = series(index);
            let shown: Vec<&Point> = line.points.iter().filter(|p| self.shows(p)).collect();
            let at = |p: &Point| {
                let (x, y) = (x.place(p.x), y.place(p.y));
                (LEFT + (RIGHT - LEFT) * x, BOTTOM - (BOTTOM - TOP) * y)
            };
            let path: Vec<String> =
                (shown.iter().map(|p| at(p))).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            svg += &format!("<polyline class=\"line {class}\" points=\"{}\"/>\n", path.join(" "));
            for point in &shown {
                let (x, y) = at(point);
                svg += &format!(
                    "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{} {}: {}, \
                     {}</title></circle>",
                    Escaped(&line.name),
                    Escaped(&point.label),
                    self.x.unit.show(point.x),
                    self.y.unit.show(point.y)
                );
                taken.push(Label::marker(x, y));
            }
            svg.push('\n');
            let rightmost = shown.iter().map(|p| at(p)).max_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((x, y)) = rightmost {
                ends.push((x, y, index));
            }
        }
        for (index, line) in self.series.iter().enumerate() {
            for point in line.points.iter().filter(|p| self.shows(p) && !p.label.is_empty()) {
                let (x, y) = (x.place(point.x), y.place(point.y));
                let (x, y) = (LEFT + (RIGHT - LEFT) * x, BOTTOM - (BOTTOM - TOP) * y);
                let label = Label::beside(x, y, &point.label, &taken);
                texts += &format!(
                    "<text class=\"c m halo t{}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    index % 7,
                    label.x,
                    label.y,
                    Escaped(&point.label)
                );
                taken.push(label);
            }
        }
        svg += &texts;
        svg += &self.names(ends);
        svg += "</svg></div></figure>\n";
        svg
    }

    fn shows(&self, point: &Point) -> bool {
        self.x.scale.shows(point.x) && self.y.scale.shows(point.y)
    }

    /// Grid, ticks and titles of both axes.
    fn frame(&self, x: &Domain, y: &Domain) -> String {
        let mut svg = String::new();
        for tick in y.ticks(&self.y.unit, 6) {
            let at = BOTTOM - (BOTTOM - TOP) * y.place(tick);
            svg += &format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"e m\" x=\"{}\" y=\"{at:.1}\">{}</text>\n",
                LEFT - 8.0,
                self.y.unit.show(tick)
            );
        }
        for tick in x.ticks(&self.x.unit, 6) {
            let at = LEFT + (RIGHT - LEFT) * x.place(tick);
            svg += &format!(
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>\
                 <text class=\"c\" x=\"{at:.1}\" y=\"{}\">{}</text>\n",
                BOTTOM + 16.0,
                self.x.unit.show(tick)
            );
        }
        svg += &format!(
            "<path class=\"frame\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>\
             <text class=\"axis\" x=\"{LEFT}\" y=\"14\">{}</text>\
             <text class=\"axis e\" x=\"{RIGHT}\" y=\"{}\">{}</text>\n",
            Escaped(&self.y.title),
            BOTTOM + 38.0,
            Escaped(&self.x.title)
        );
        svg
    }

    /// Names at the right edge, near the ends of their lines and never on top of each other.
    fn names(&self, mut ends: Vec<(f64, f64, usize)>) -> String {
        const STEP: f64 = 16.0;
        ends.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut svg = String::new();
        // Pushed down by the one above, but never so far that those below leave the picture.
        let mut lowest = f64::NEG_INFINITY;
        let count = ends.len();
        for (rank, (x, y, index)) in ends.into_iter().enumerate() {
            let room_below = STEP * (count - 1 - rank) as f64;
            let at = y.max(lowest + STEP).min((BOTTOM - room_below).max(lowest + STEP));
            lowest = at;
            let number = index % 7;
            svg += &format!(
                "<path class=\"leader\" d=\"M{:.1} {y:.1}L{RIGHT} {y:.1}L{} {at:.1}\"/>\
                 <text class=\"m name t{number}\" x=\"{}\" y=\"{at:.1}\">{}</text>\n",
                x + 7.0,
                RIGHT + 10.0,
                RIGHT + 14.0,
                Escaped(&self.series[index].name)
            );
        }
        svg
    }
}

/// A text's place, by its middle.
#[derive(Clone, Copy)]
struct Label {
    x: f64,
    y: f64,
    half_width: f64,
    half_height: f64,
}

impl Label {
    fn marker(x: f64, y: f64) -> Self {
        Self { x, y, half_width: 5.0, half_height: 5.0 }
    }

    /// Above, below, right or left of a marker: the first place that is free, or above.
    fn beside(x: f64, y: f64, text: &str, taken: &[Label]) -> Self {
        let half_width = 3.4 * text.chars().count() as f64 + 2.0;
        let side = half_width + 8.0;
        let places =
            [(0.0, -14.0), (0.0, 14.0), (side, 0.0), (-side, 0.0), (side, -14.0), (side, 14.0)];
        let place =
            |(dx, dy): (f64, f64)| Self { x: x + dx, y: y + dy, half_width, half_height: 6.0 };
        let free = places.map(place).into_iter().find(|label| {
            let inside = (TOP..BOTTOM).contains(&label.y) && label.x - half_width > LEFT;
            inside && !taken.iter().any(|other| label.overlaps(other))
        });
        free.unwrap_or_else(|| place(places[0]))
    }

    fn overlaps(&self, other: &Self) -> bool {
        (self.x - other.x).abs() < self.half_width + other.half_width
            && (self.y - other.y).abs() < self.half_height + other.half_height
    }
}
