//! Stacked bars: wholes and their parts.

use super::{
    axis::{Domain, Scale, Unit},
    colour::series,
    escape::Escaped,
};

/// Horizontal bars whose parts add up.
#[derive(Clone, Debug)]
pub struct StackedBars {
    /// What they show.
    pub title: String,
    /// What the values are counted in.
    pub unit: Unit,
    /// The parts every bar has, in order. The last one is drawn pale if `last_is_rest`.
    pub parts: Vec<String>,
    /// Whether the last part is what is left of a whole, as free memory is.
    pub last_is_rest: bool,
    /// The bars, from the top.
    pub bars: Vec<Bar>,
}

/// One of several [`StackedBars`].
#[derive(Clone, Debug)]
pub struct Bar {
    /// What the whole is.
    pub name: String,
    /// One value for each part; negative ones and such as are not finite count as 0.
    pub values: Vec<f64>,
}

const WIDTH: f64 = 720.0;
const NAMES: f64 = 150.0;
const TOTALS: f64 = 84.0;
const ROW: f64 = 30.0;
const TOP: f64 = 6.0;

impl StackedBars {
    pub(super) fn render(&self) -> String {
        let wholes: Vec<f64> = self.bars.iter().map(|bar| bar.values().sum()).collect();
        let domain = Domain::tight(Scale::Linear, wholes.iter().copied().chain([0.0]));
        // A whole beyond what the scale shows fills its bar, and counts for no other.
        let place = |value: f64| domain.place(value).clamp(0.0, 1.0);
        let room = WIDTH - NAMES - TOTALS;
        let bottom = TOP + ROW * self.bars.len() as f64;
        let height = bottom + 22.0;
        let title = Escaped(&self.title);
        let mut svg = format!(
            "<figure><figcaption>{title}</figcaption>\n{}<div class=\"scroll\"><svg class=\"wide\" \
             role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {WIDTH} {height}\">\n",
            self.legend()
        );
        for tick in domain.ticks(&self.unit, 5) {
            let x = NAMES + room * domain.place(tick);
            svg += &format!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text class=\"c\" x=\"{x:.1}\" y=\"{}\">{}</text>\n",
                bottom + 14.0,
                self.unit.show(tick)
            );
        }
        for (row, (bar, whole)) in self.bars.iter().zip(&wholes).enumerate() {
            let y = TOP + ROW * row as f64;
            let middle = y + ROW / 2.0;
            svg += &format!(
                "<text class=\"e m\" x=\"{}\" y=\"{middle}\">{}</text>",
                NAMES - 8.0,
                Escaped(&shortened(&bar.name, 22))
            );
            let mut start = 0.0;
            for (part, value) in bar.values().enumerate().take(self.parts.len()) {
                let (from, to) = (place(start), place(start + value));
                start += value;
                svg += &format!(
                    "<rect class=\"{}\" x=\"{:.2}\" y=\"{}\" width=\"{:.2}\" height=\"{}\">\
                     <title>{}, {}: {} ({:.1}%)</title></rect>",
                    self.class(part),
                    NAMES + room * from,
                    y + 5.0,
                    room * (to - from),
                    ROW - 10.0,
                    Escaped(&bar.name),
                    Escaped(&self.parts[part]),
                    self.unit.show(value),
                    if *whole > 0.0 { 100.0 * value / whole } else { 0.0 }
                );
            }
            svg += &format!(
                "<text class=\"m\" x=\"{:.1}\" y=\"{middle}\">{}</text>\n",
                NAMES + room * place(*whole) + 6.0,
                self.unit.show(*whole)
            );
        }
        svg += "</svg></div></figure>\n";
        svg
    }

    fn legend(&self) -> String {
        let mut html = String::from("<ul class=\"key\">");
        for (part, name) in self.parts.iter().enumerate() {
            html += &format!("<li><i class=\"{}\"></i>{}</li>", self.class(part), Escaped(name));
        }
        html += "</ul>\n";
        html
    }

    fn class(&self, part: usize) -> String {
        match self.last_is_rest && part + 1 == self.parts.len() {
            true => "rest".to_owned(),
            false => series(part),
        }
    }
}

impl Bar {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.values.iter().map(|&value| if value.is_finite() { value.max(0.0) } else { 0.0 })
    }
}

/// The start of a name, in no more than `most` characters.
fn shortened(name: &str, most: usize) -> String {
    match name.char_indices().nth(most) {
        None => name.to_owned(),
        Some(_) => name.chars().take(most - 1).chain(['…']).collect(),
    }
}
