//! Heat maps: one value per cell, as colour.

use super::{
    axis::{Domain, Scale, Unit},
    colour::viridis,
    escape::Escaped,
};

/// Heat maps of one quantity, side by side under one colour scale.
#[derive(Clone, Debug)]
pub struct HeatMaps {
    /// What they show.
    pub title: String,
    /// What a row is, as in "layer".
    pub row_name: String,
    /// What a column is, as in "KV head".
    pub column_name: String,
    /// What a value is, as in "slots kept".
    pub value_name: String,
    /// How values are spread over the colours. [`Scale::Log`] keeps maps apart whose values differ by
    /// large factors.
    pub scale: Scale,
    /// The maps.
    pub maps: Vec<HeatMap>,
}

/// One of several [`HeatMaps`].
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// What sets it apart.
    pub title: String,
    /// Cells per row.
    pub columns: usize,
    /// Values, row by row.
    pub values: Vec<f64>,
}

impl HeatMaps {
    pub(super) fn render(&self) -> String {
        let values = self.maps.iter().flat_map(|map| map.values.iter().copied());
        let domain = Domain::tight(self.scale, values);
        let mut html = format!(
            "<figure><figcaption>{}</figcaption>\n<div class=\"maps\">\n",
            Escaped(&self.title)
        );
        for map in &self.maps {
            html += &self.map(map, &domain);
        }
        html += "</div>\n";
        html += &self.legend(&domain);
        html += "</figure>\n";
        html
    }

    fn map(&self, map: &HeatMap, domain: &Domain) -> String {
        let columns = map.columns.max(1);
        let rows = map.values.len().div_ceil(columns);
        // Cells shrink where there are many, so that a map stays on one screen.
        let height = (480 / rows.max(1)).clamp(6, 16);
        let width = (160 / columns).clamp(8, 24);
        let (left, top, bottom) = (30, 4, 30);
        let (map_width, map_height) = (columns * width, rows * height);
        let (full_width, full_height) = (left + map_width + 8, top + map_height + bottom);
        let mut svg = format!(
            "<div><h3>{title}</h3>\n<svg role=\"img\" aria-label=\"{title}\" \
             width=\"{full_width}\" height=\"{full_height}\" \
             viewBox=\"0 0 {full_width} {full_height}\">\n",
            title = Escaped(&map.title)
        );
        let (row_name, column_name) = (Escaped(&self.row_name), Escaped(&self.column_name));
        let value_name = Escaped(&self.value_name);
        for (index, &value) in map.values.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let (x, y) = (left + column * width, top + row * height);
            let (fill, shown) = match self.scale.shows(value) {
                true => (format!(" fill=\"{}\"", viridis(domain.place(value))), number(value)),
                false => (" class=\"none\"".to_owned(), number(value)),
            };
            svg += &format!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"{fill}>\
                 <title>{row_name} {row}, {column_name} {column}: {shown} {value_name}</title></rect>"
            );
        }
        svg.push('\n');
        for row in labelled(rows, 14usize.div_ceil(height)) {
            let y = top + row * height + height / 2;
            svg += &format!("<text class=\"e m\" x=\"{}\" y=\"{y}\">{row}</text>", left - 5);
        }
        for column in labelled(columns, 18usize.div_ceil(width)) {
            let x = left + column * width + width / 2;
            let y = top + map_height + 11;
            svg += &format!("<text class=\"c\" x=\"{x}\" y=\"{y}\">{column}</text>");
        }
        let (x, y) = (left, top + map_height + 26);
        svg += &format!("<text class=\"axis\" x=\"{x}\" y=\"{y}\">{column_name} →</text>");
        let (x, y) = (9, top + map_height);
        svg += &format!(
            "<text class=\"axis\" transform=\"translate({x} {y}) rotate(-90)\">← {row_name}</text>"
        );
        svg += "</svg></div>\n";
        svg
    }

    fn legend(&self, domain: &Domain) -> String {
        let (left, width, steps) = (12.0, 256.0, 64);
        let mut svg = String::from(
            "<svg class=\"legend\" role=\"img\" aria-label=\"colour scale\" width=\"300\" \
             height=\"46\" viewBox=\"0 0 300 46\">",
        );
        for step in 0..steps {
            let x = left + width * f64::from(step) / f64::from(steps);
            let fill = viridis((f64::from(step) + 0.5) / f64::from(steps));
            svg += &format!(
                "<rect x=\"{x}\" y=\"16\" width=\"{}\" height=\"10\" fill=\"{fill}\"/>",
                width / f64::from(steps) + 0.5
            );
        }
        let name = Escaped(&self.value_name);
        let note = if self.scale == Scale::Log { " (logarithmic)" } else { "" };
        svg += &format!("<text class=\"axis\" x=\"{left}\" y=\"10\">{name}{note}</text>");
        // The ends always carry a number; round ones in between only where they have room.
        let mut marks = vec![domain.low, domain.high];
        if domain.high > domain.low {
            for tick in domain.ticks(&Unit::NONE, 4) {
                let room = |&mark: &f64| (domain.place(mark) - domain.place(tick)).abs() > 0.13;
                if marks.iter().all(room) {
                    marks.push(tick);
                }
            }
        } else {
            marks.pop();
        }
        for mark in marks {
            let x = left + width * domain.place(mark);
            svg += &format!(
                "<text class=\"c\" x=\"{x:.1}\" y=\"38\">{}</text>",
                Unit::NONE.show(mark)
            );
        }
        svg += "</svg>\n";
        svg
    }
}

/// Whole numbers as they are, others rounded.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { Unit::NONE.show(value) }
}

/// Which of `count` rows or columns carry their number if only every `spacing`-th has room.
fn labelled(count: usize, spacing: usize) -> impl Iterator<Item = usize> {
    let round = [1, 2, 5, 10, 20, 50, 100];
    let step = round.into_iter().find(|&step| step >= spacing).unwrap_or(spacing.max(1));
    (0..count).step_by(step)
}
