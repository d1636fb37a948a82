//! Query rows as kernels take them.

use std::{f32::consts::LOG2_E, ops::Range};

use crate::base::LayerShape;

/// Query rows, scaled so that their scores are in base 2.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    /// `[rows][dim]`
    pub values: &'a [f32],
    /// Channels of a row.
    pub dim: usize,
    /// What scores are held to, in base 2.
    pub cap: Option<f32>,
}

impl<'a> Queries<'a> {
    pub fn new(layer: &LayerShape, values: &'a [f32]) -> Self {
        Self { values, dim: layer.k_dim(), cap: layer.softcap().map(|cap| LOG2_E * cap) }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.dim
    }

    /// The values of some rows.
    pub fn of(&self, rows: Range<usize>) -> &'a [f32] {
        &self.values[rows.start * self.dim..rows.end * self.dim]
    }
}
