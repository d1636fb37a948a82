//! The page that everything stands on.

use std::path::Path;

use super::{
    bars::StackedBars,
    escape::Escaped,
    heat_map::HeatMaps,
    line_chart::LineChart,
    table::{self, Table},
};
use crate::report::{error::ReportError, file::write_atomically};

/// A page under construction: parts appear in the order they are added.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

/// A key figure.
#[derive(Clone, Debug)]
pub struct Tile {
    /// What it is.
    pub label: String,
    /// The figure, with its unit.
    pub value: String,
    /// What to compare it with; may be empty.
    pub note: String,
}

impl Tile {
    /// A key figure.
    pub fn new(
        label: impl Into<String>,
        value: impl Into<String>,
        note: impl Into<String>,
    ) -> Self {
        Self { label: label.into(), value: value.into(), note: note.into() }
    }
}

impl Page {
    /// A page with nothing but its title.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), body: String::new() }
    }

    /// A section's heading.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.push(format!("<h2>{}</h2>\n", Escaped(text)))
    }

    /// A paragraph; line breaks in it are kept.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.push(format!("<p>{}</p>\n", Escaped(text)))
    }

    /// Output of a model or a program, in its own line breaks and equal-width letters.
    pub fn quote(&mut self, text: &str) -> &mut Self {
        self.push(format!("<pre>{}</pre>\n", Escaped(text)))
    }

    /// A row of key figures.
    pub fn tiles(&mut self, tiles: Vec<Tile>) -> &mut Self {
        let tile = |tile: &Tile| {
            let (label, value) = (Escaped(&tile.label), Escaped(&tile.value));
            let note = Escaped(&tile.note);
            format!("<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>\n")
        };
        self.push(format!("<dl>{}</dl>\n", tiles.iter().map(tile).collect::<String>()))
    }

    /// A table.
    pub fn table(&mut self, table: Table) -> &mut Self {
        self.push(table.render())
    }

    /// Heat maps side by side with one legend.
    pub fn heat_maps(&mut self, maps: HeatMaps) -> &mut Self {
        self.push(maps.render())
    }

    /// A line chart.
    pub fn line_chart(&mut self, chart: LineChart) -> &mut Self {
        self.push(chart.render())
    }

    /// Stacked bars.
    pub fn stacked_bars(&mut self, bars: StackedBars) -> &mut Self {
        self.push(bars.render())
    }

    /// The whole document.
    pub fn to_html(&self) -> String {
        let title = Escaped(&self.title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n\
             <h1>{title}</h1>\n{}</main>\n</body>\n</html>\n",
            include_str!("page.css"),
            table::style(),
            self.body
        )
    }

    /// Writes the page, whole or not at all.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), ReportError> {
        write_atomically(path.as_ref(), self.to_html().as_bytes())
    }

    fn push(&mut self, html: String) -> &mut Self {
        self.body += &html;
        self
    }
}
