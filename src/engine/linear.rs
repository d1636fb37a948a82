//! Products with weight matrices, and the general f32 matrix product.

use gemm::Parallelism;
use rayon::prelude::*;

use super::simd::RowDots;

/// Up to this many tokens a row-by-row dot product beats packing the weights for gemm.
const SMALL_BATCH: usize = 32;
/// Weights that one rayon job of the small-batch product reads at least (64 KiB).
const JOB_WEIGHTS: usize = 16 << 10;

/// A weight matrix \[outputs\]\[inputs\]: `y = x · Wᵀ`.
#[derive(Debug)]
pub(super) struct Linear {
    weights: Vec<f32>,
    outputs: usize,
    inputs: usize,
}

impl Linear {
    /// Takes the weights row by row; there must be `outputs * inputs`.
    pub fn new(weights: Vec<f32>, outputs: usize, inputs: usize) -> Self {
        assert_eq!(weights.len(), outputs * inputs);
        Self { weights, outputs, inputs }
    }

    /// Row `index` of the matrix: as a tied embedding, token `index`'s vector.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.weights[index * self.inputs..][..self.inputs]
    }

    /// `y = x · Wᵀ` with `x` \[tokens\]\[inputs\] and `y` \[tokens\]\[outputs\].
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        self.product(x, y, false);
    }

    /// `y += x · Wᵀ`.
    pub fn add_to(&self, x: &[f32], y: &mut [f32]) {
        self.product(x, y, true);
    }

    fn product(&self, x: &[f32], y: &mut [f32], accumulate: bool) {
        let tokens = x.len() / self.inputs;
        assert_eq!(x.len(), tokens * self.inputs);
        assert_eq!(y.len(), tokens * self.outputs);
        if tokens <= SMALL_BATCH {
            self.small_product(x, tokens, y, accumulate);
        } else {
            matmul(
                View::rows(x, tokens, self.inputs),
                View::rows(&self.weights, self.outputs, self.inputs).transposed(),
                ViewMut::rows(y, tokens, self.outputs),
                accumulate,
                Parallelism::Rayon(0),
            );
        }
    }

    fn small_product(&self, x: &[f32], tokens: usize, y: &mut [f32], accumulate: bool) {
        if tokens == 0 {
            return;
        }
        let jobs = rayon::current_num_threads() * 4;
        let rows = self.outputs.div_ceil(jobs).max(JOB_WEIGHTS.div_ceil(self.inputs));
        let rows = rows.next_multiple_of(4);
        // By rows first: each job then writes one piece of memory of its own.
        let mut by_row = vec![0.0; self.outputs * tokens];
        self.weights
            .par_chunks(rows * self.inputs)
            .zip(by_row.par_chunks_mut(rows * tokens))
            .for_each(|(weights, out)| RowDots { weights, x, depth: self.inputs, out }.run());
        for (token, y) in y.chunks_exact_mut(self.outputs).enumerate() {
            let column = by_row[token..].iter().step_by(tokens);
            for (y, &value) in y.iter_mut().zip(column) {
                *y = if accumulate { *y + value } else { value };
            }
        }
    }
}

/// A matrix somewhere in a slice.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows that follow one another without a gap.
    pub fn rows(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that begin `stride` values apart.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(stride >= columns);
        assert!(data.len() >= extent(rows, columns, stride));
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The same values with rows and columns swapped.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// A row-major matrix to write.
pub(super) struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> ViewMut<'a> {
    /// Rows that follow one another without a gap.
    pub fn rows(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that begin `stride` values apart.
    pub fn strided(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(stride >= columns);
        assert!(data.len() >= extent(rows, columns, stride));
        Self { data, rows, columns, row_stride: stride }
    }
}

/// Values from the first to one past the last of a row-major matrix.
fn extent(rows: usize, columns: usize, stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns }
}

/// `out = a · b`, or `out += a · b`. `Parallelism::Rayon(0)` uses every thread of the pool.
pub(super) fn matmul(
    a: View<'_>,
    b: View<'_>,
    out: ViewMut<'_>,
    accumulate: bool,
    parallelism: Parallelism,
) {
    assert_eq!(a.columns, b.rows);
    assert_eq!((out.rows, out.columns), (a.rows, b.columns));
    // SAFETY: every index that gemm forms is row * row_stride + column * column_stride of one of
    // the three views; their constructors checked that the last of these lies inside the slice,
    // and `transposed` only swaps the roles. `out` is borrowed mutably, so it overlaps neither
    // input. Strides come from slices and fit isize.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            a.columns,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed) % 103) as f32 / 51.0 - 1.0).collect()
    }

    #[test]
    fn small_and_large_batches_match_plain_sums() {
        let (outputs, inputs) = (37, 50);
        let linear = Linear::new(values(outputs * inputs, 1), outputs, inputs);
        for tokens in [0, 1, 3, SMALL_BATCH, SMALL_BATCH + 1, 40] {
            let x = values(tokens * inputs, 2);
            let mut y = vec![f32::NAN; tokens * outputs];
            linear.apply(&x, &mut y);
            let mut twice = y.clone();
            linear.add_to(&x, &mut twice);
            for token in 0..tokens {
                for output in 0..outputs {
                    let exact: f64 = linear
                        .row(output)
                        .iter()
                        .zip(&x[token * inputs..])
                        .map(|(w, x)| f64::from(*w) * f64::from(*x))
                        .sum();
                    let at = token * outputs + output;
                    assert!((f64::from(y[at]) - exact).abs() < 1e-4);
                    assert!((f64::from(twice[at]) - 2.0 * exact).abs() < 2e-4);
                }
            }
        }
    }

    #[test]
    fn strided_views_touch_only_their_own_columns() {
        let a = values(3 * 8, 3);
        let b = values(4 * 5, 4);
        let mut out = vec![9.0; 3 * 7];
        matmul(
            View::strided(&a, 3, 4, 8),
            View::rows(&b, 4, 5),
            ViewMut::strided(&mut out, 3, 5, 7),
            false,
            Parallelism::None,
        );
        for row in 0..3 {
            for column in 0..5 {
                let exact: f32 = (0..4).map(|i| a[row * 8 + i] * b[i * 5 + column]).sum();
                assert!((out[row * 7 + column] - exact).abs() < 1e-5);
            }
            assert_eq!(out[row * 7 + 5..row * 7 + 7], [9.0, 9.0]);
        }
    }
}
