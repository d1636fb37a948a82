//! One self-contained HTML page: text, key figures, tables and charts as inline SVG, without scripts,
//! fonts or links. It follows the reader's light or dark scheme and fits a phone.
//!
//! All text given is shown as it is: whatever looks like markup is escaped. Values that a scale cannot
//! show (not finite, or not positive on a logarithmic axis) are left out of the drawing.
//!
//! ```
//! use headwise::report::html::{Align, Column, Page, Table, Tile};
//!
//! let mut page = Page::new("KV memory");
//! page.text("What one request held.")
//!     .tiles(vec![Tile::new("held", "12 MiB", "of 96 MiB")])
//!     .table(Table {
//!         title: "Rates".into(),
//!         columns: vec![Column::new("rate", Align::Text), Column::new("KL", Align::Number)],
//!         rows: vec![vec!["8x".into(), "0.061".into()]],
//!     });
//! let html = page.to_html();
//! assert!(html.contains("12 MiB"));
//! ```

mod axis;
mod bars;
mod colour;
mod escape;
mod heat_map;
mod line_chart;
mod page;
mod table;

pub use axis::{Axis, Scale, Unit};
pub use bars::{Bar, StackedBars};
pub use heat_map::{HeatMap, HeatMaps};
pub use line_chart::{LineChart, Point, Series};
pub use page::{Page, Tile};
pub use table::{Align, Column, Table};

#[cfg(test)]
pub(crate) mod tests;
