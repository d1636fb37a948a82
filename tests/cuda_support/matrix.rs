//! Rows on a device for tests of kernels, with what must not be touched poisoned.

use half::{bf16, f16};
use headwise::{
    cuda::{
        DeviceRows, DeviceRowsMut, Element, Staging,
        driver::{DeviceBuffer, Stream},
    },
    device::Kernels,
};

/// What lies between rows and behind them, and in results before they are written: NaN in every element.
pub const POISON: u8 = 0xff;
/// Numbers between rows of a matrix that is not dense.
pub const GAP: usize = 5;

/// Uniform numbers, the same on every run (SplitMix64).
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale).collect()
    }
}

/// Device memory and copies.
pub struct Bench<'a> {
    pub kernels: &'a Kernels,
    pub stream: Stream,
    pub staging: Staging,
    pub random: Random,
}

/// Rows in a buffer of their own.
pub struct Matrix {
    pub buffer: DeviceBuffer,
    pub element: Element,
    pub first: usize,
    pub shape: [usize; 2],
    pub stride: usize,
}

impl Matrix {
    pub fn rows(&self) -> DeviceRows<'_> {
        DeviceRows::strided(&self.buffer, self.element, self.first, self.shape, self.stride)
            .unwrap()
    }

    pub fn rows_mut(&mut self) -> DeviceRowsMut<'_> {
        let (element, first) = (self.element, self.first);
        DeviceRowsMut::strided(&mut self.buffer, element, first, self.shape, self.stride).unwrap()
    }
}

pub fn encode(element: Element, value: f32) -> Vec<u8> {
    match element {
        Element::F32 => value.to_le_bytes().to_vec(),
        Element::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Element::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

pub fn decode(element: Element, bytes: &[u8]) -> f32 {
    match element {
        Element::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Element::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Element::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
    }
}

/// The largest relative error of rounding to an element, and a few of f32 before it.
pub fn precision(element: Element) -> f64 {
    match element {
        Element::F32 => 4e-6,
        Element::F16 => 6e-4,
        Element::Bf16 => 4.5e-3,
    }
}

impl<'a> Bench<'a> {
    pub fn new(kernels: &'a Kernels) -> Self {
        let context = kernels.context();
        let staging = Staging::new(context, 2, 1 << 14).unwrap();
        Self { kernels, stream: Stream::new(context).unwrap(), staging, random: Random(11) }
    }

    pub fn put(&mut self, bytes: &[u8]) -> DeviceBuffer {
        let mut buffer = DeviceBuffer::new(self.kernels.context(), bytes.len()).unwrap();
        self.staging.upload(&self.stream, &mut buffer, [(0, bytes)]).unwrap();
        buffer
    }

    pub fn words(&mut self, words: &[u32]) -> DeviceBuffer {
        self.put(bytemuck::cast_slice(words))
    }

    /// Poisoned rows: dense and aligned, or with gaps at an odd place.
    pub fn empty(&mut self, element: Element, [rows, columns]: [usize; 2], gaps: bool) -> Matrix {
        let (first, stride) = if gaps { (3, columns + GAP) } else { (0, columns) };
        let numbers = first + rows * stride + GAP;
        let buffer = self.put(&vec![POISON; numbers * element.bytes()]);
        Matrix { buffer, element, first, shape: [rows, columns], stride }
    }

    /// Rows of random values, which are returned as they are stored.
    pub fn matrix(
        &mut self,
        element: Element,
        shape: [usize; 2],
        gaps: bool,
    ) -> (Matrix, Vec<f64>) {
        let values = self.random.floats(shape[0] * shape[1], 2.0);
        self.matrix_of(element, shape, gaps, &values)
    }

    pub fn matrix_of(
        &mut self,
        element: Element,
        [rows, columns]: [usize; 2],
        gaps: bool,
        values: &[f32],
    ) -> (Matrix, Vec<f64>) {
        let mut matrix = self.empty(element, [rows, columns], gaps);
        let mut stored = Vec::new();
        for row in 0..rows {
            let values = &values[row * columns..][..columns];
            let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(element, v)).collect();
            let decoded =
                bytes.chunks_exact(element.bytes()).map(|b| f64::from(decode(element, b)));
            stored.extend(decoded);
            let at = (matrix.first + row * matrix.stride) * element.bytes();
            self.staging.upload(&self.stream, &mut matrix.buffer, [(at, &*bytes)]).unwrap();
        }
        (matrix, stored)
    }

    pub fn bytes(&mut self, buffer: &DeviceBuffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.bytes()];
        let all = 0..bytes.len();
        let ranges = std::slice::from_ref(&all);
        self.staging.download(&self.stream, buffer, ranges, &mut bytes).unwrap();
        bytes
    }

    /// The values of a matrix. Everything around them is poison still.
    pub fn values(&mut self, matrix: &Matrix) -> Vec<f32> {
        let bytes = self.bytes(&matrix.buffer);
        let (size, [rows, columns]) = (matrix.element.bytes(), matrix.shape);
        let mut values = vec![f32::NAN; rows * columns];
        for (number, bytes) in bytes.chunks_exact(size).enumerate() {
            let place = number.checked_sub(matrix.first);
            let place = place.map(|place| (place / matrix.stride, place % matrix.stride));
            match place.filter(|&(row, column)| row < rows && column < columns) {
                Some((row, column)) => {
                    values[row * columns + column] = decode(matrix.element, bytes);
                }
                None => {
                    assert!(bytes.iter().all(|&byte| byte == POISON), "number {number} changed")
                }
            }
        }
        values
    }

    /// Compares with exact values, by the rounding of the element; `scale` is that of the terms.
    pub fn check(&mut self, what: &str, matrix: &Matrix, exact: &[f64], scale: f64) {
        let values = self.values(matrix);
        assert_eq!(values.len(), exact.len(), "{what}");
        let precision = precision(matrix.element);
        for (i, (&got, &exact)) in values.iter().zip(exact).enumerate() {
            let error = (f64::from(got) - exact).abs();
            let most = precision * (exact.abs() + scale);
            assert!(error <= most, "{what}, value {i}: {got}, not {exact}");
        }
    }
}

/// Rows, columns and gaps: nothing, one value, whole vectors, not quite, and more than a block has threads.
pub fn shapes() -> impl Iterator<Item = ([usize; 2], bool)> {
    let shapes = [[0, 8], [1, 1], [2, 32], [3, 30], [1, 1027], [2, 1028], [5, 7]];
    shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)])
}
