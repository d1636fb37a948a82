//! Rows of numbers in device memory, as checked views.

use std::ops::Range;

use serde::Serialize;

use super::{
    driver::{Context, DeviceBuffer},
    error::CudaError,
};

/// How a number is stored in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// Rows of numbers on a device, to read: an address, what is stored, how many rows of how many columns,
/// and how many numbers lie from the start of one row to the next.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRows<'a> {
    context: &'a Context,
    address: u64,
    element: Element,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// As [`DeviceRows`], to write.
#[derive(Debug)]
pub struct DeviceRowsMut<'a>(DeviceRows<'a>);

impl<'a> DeviceRows<'a> {
    /// `[rows, columns]` at the start of a buffer, one row after another.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if the buffer is smaller.
    pub fn of(
        buffer: &'a DeviceBuffer,
        element: Element,
        [rows, columns]: [usize; 2],
    ) -> Result<Self, CudaError> {
        Self::strided(buffer, element, 0, [rows, columns], columns)
    }

    /// `[rows, columns]` from number `first` of a buffer on, rows `stride` numbers apart.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if the last row ends outside the buffer, [`CudaError::WrongLength`] for
    /// rows that overlap.
    pub fn strided(
        buffer: &'a DeviceBuffer,
        element: Element,
        first: usize,
        [rows, columns]: [usize; 2],
        stride: usize,
    ) -> Result<Self, CudaError> {
        if stride < columns {
            return Err(CudaError::WrongLength {
                what: "numbers from row to row",
                got: stride,
                expected: columns,
            });
        }
        let bytes = |numbers: usize| numbers.saturating_mul(element.bytes());
        let end = match rows {
            0 => first,
            _ => (rows - 1).saturating_mul(stride).saturating_add(columns).saturating_add(first),
        };
        if bytes(end) > buffer.bytes() {
            return Err(CudaError::OutOfBounds {
                start: bytes(first),
                end: bytes(end),
                len: buffer.bytes(),
            });
        }
        let address = buffer.address() + bytes(first) as u64;
        Ok(Self { context: buffer.context(), address, element, rows, columns, stride })
    }

    /// `[rows, columns]` of an engine's own memory, by its address, rows `stride` numbers apart.
    ///
    /// # Errors
    /// [`CudaError::WrongLength`] for rows that overlap.
    ///
    /// # Safety
    /// The rows are memory of `context`. Whatever is given them queues work that reads them (of
    /// [`DeviceRowsMut`]: that writes them); until its stream is done with that, they stay, and nothing else
    /// writes (uses) them.
    pub unsafe fn from_raw(
        context: &'a Context,
        address: u64,
        element: Element,
        [rows, columns]: [usize; 2],
        stride: usize,
    ) -> Result<Self, CudaError> {
        if stride < columns {
            let what = "numbers from row to row";
            return Err(CudaError::WrongLength { what, got: stride, expected: columns });
        }
        Ok(Self { context, address, element, rows, columns, stride })
    }

    /// The context that the memory belongs to.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The device address of the first number.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What is stored.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Numbers from the start of one row to the next, at least the columns.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Some of the rows.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], in rows, for some that there are not.
    pub fn rows_of(self, rows: Range<usize>) -> Result<Self, CudaError> {
        let Range { start, end } = rows;
        if start > end || end > self.rows {
            return Err(CudaError::OutOfBounds { start, end, len: self.rows });
        }
        let address = self.address + (start * self.stride * self.element.bytes()) as u64;
        Ok(Self { address, rows: end - start, ..self })
    }

    /// Some columns of every row.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`], in columns, for some that the rows do not have.
    pub fn slice(self, columns: Range<usize>) -> Result<Self, CudaError> {
        let Range { start, end } = columns;
        if start > end || end > self.columns {
            return Err(CudaError::OutOfBounds { start, end, len: self.columns });
        }
        let address = self.address + (start * self.element.bytes()) as u64;
        Ok(Self { address, columns: end - start, ..self })
    }
}

impl<'a> DeviceRowsMut<'a> {
    /// As [`DeviceRows::of`].
    ///
    /// # Errors
    /// As there.
    pub fn of(
        buffer: &'a mut DeviceBuffer,
        element: Element,
        shape: [usize; 2],
    ) -> Result<Self, CudaError> {
        DeviceRows::of(buffer, element, shape).map(Self)
    }

    /// As [`DeviceRows::strided`].
    ///
    /// # Errors
    /// As there.
    pub fn strided(
        buffer: &'a mut DeviceBuffer,
        element: Element,
        first: usize,
        shape: [usize; 2],
        stride: usize,
    ) -> Result<Self, CudaError> {
        DeviceRows::strided(buffer, element, first, shape, stride).map(Self)
    }

    /// As [`DeviceRows::from_raw`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn from_raw(
        context: &'a Context,
        address: u64,
        element: Element,
        shape: [usize; 2],
        stride: usize,
    ) -> Result<Self, CudaError> {
        // SAFETY: the caller vouches for the memory.
        unsafe { DeviceRows::from_raw(context, address, element, shape, stride) }.map(Self)
    }

    /// The same rows, to read.
    pub fn as_rows(&self) -> DeviceRows<'_> {
        self.0
    }

    /// The same rows for a shorter time.
    pub fn reborrow(&mut self) -> DeviceRowsMut<'_> {
        DeviceRowsMut(self.0)
    }
}

/// 32-bit words on a device, to read: tokens, positions, tables.
#[derive(Clone, Copy, Debug)]
pub struct DeviceWords<'a> {
    context: &'a Context,
    address: u64,
    count: usize,
}

impl<'a> DeviceWords<'a> {
    /// `count` words at the start of a buffer.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`] if the buffer is smaller.
    pub fn of(buffer: &'a DeviceBuffer, count: usize) -> Result<Self, CudaError> {
        let (end, len) = (count.saturating_mul(size_of::<u32>()), buffer.bytes());
        if end > len {
            return Err(CudaError::OutOfBounds { start: 0, end, len });
        }
        Ok(Self { context: buffer.context(), address: buffer.address(), count })
    }

    /// The context that the memory belongs to.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The device address of the first word.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Refuses memory of another context than `context`.
pub(crate) fn unless_same_context<'a>(
    context: &Context,
    others: impl IntoIterator<Item = &'a Context>,
) -> Result<(), CudaError> {
    let same = others.into_iter().all(|other| other.same(context));
    if same { Ok(()) } else { Err(CudaError::OtherContext) }
}

/// Refuses a number that is not the expected one.
pub(crate) fn unless_equal(
    what: &'static str,
    got: usize,
    expected: usize,
) -> Result<(), CudaError> {
    if got == expected { Ok(()) } else { Err(CudaError::WrongLength { what, got, expected }) }
}

/// Refuses rows of another type than the expected one.
pub(crate) fn unless_element(
    what: &'static str,
    got: Element,
    expected: Element,
) -> Result<(), CudaError> {
    let (got, wanted) = (got.name(), expected.name());
    if got == wanted {
        Ok(())
    } else {
        Err(CudaError::WrongElement { what, got, expected: wanted })
    }
}
