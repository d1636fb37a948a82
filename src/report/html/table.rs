//! Tables.

use super::escape::Escaped;

/// A table with one header row.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it shows; empty for none.
    pub title: String,
    /// Header and alignment of each column.
    pub columns: Vec<Column>,
    /// Cells, row by row. Missing cells stay empty, cells beyond the columns are not shown.
    pub rows: Vec<Vec<String>>,
}

/// A column of a [`Table`].
#[derive(Clone, Debug)]
pub struct Column {
    /// Header, with the unit.
    pub name: String,
    /// How its cells stand.
    pub align: Align,
}

/// How the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words, from the left.
    Text,
    /// Numbers, to the right with digits of one width.
    Number,
}

impl Column {
    /// A column.
    pub fn new(name: impl Into<String>, align: Align) -> Self {
        Self { name: name.into(), align }
    }
}

impl Table {
    pub(super) fn render(&self) -> String {
        let mut html = String::from("<figure class=\"table\">");
        if !self.title.is_empty() {
            html += &format!("<figcaption>{}</figcaption>", Escaped(&self.title));
        }
        html += "<div class=\"scroll\"><table><thead><tr>";
        for column in &self.columns {
            html += &format!("<th scope=\"col\"{}>{}</th>", column.class(), Escaped(&column.name));
        }
        html += "</tr></thead><tbody>";
        for row in &self.rows {
            html += "<tr>";
            let cells = row.iter().map(String::as_str).chain(std::iter::repeat(""));
            for (column, cell) in self.columns.iter().zip(cells) {
                html += &format!("<td{}>{}</td>", column.class(), Escaped(cell));
            }
            html += "</tr>\n";
        }
        html += "</tbody></table></div></figure>\n";
        html
    }
}

impl Column {
    fn class(&self) -> &'static str {
        match self.align {
            Align::Text => "",
            Align::Number => " class=\"n\"",
        }
    }
}
