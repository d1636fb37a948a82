//! What a format can hold, and what becomes of a value that it cannot.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    SlotFormat,
    codec::{Codec, CodecVisitor},
};

/// K or V of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// K.
    Key,
    /// V.
    Value,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Value => "value",
        })
    }
}

/// What an append does with a value that its format cannot hold: one beyond the format's largest, an
/// infinity, or NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// Refuses all of it, with the first such value.
    #[default]
    Refuse,
    /// Stores the format's largest value of the same sign, and zero for NaN; counts them. In `i8` an
    /// infinity becomes the largest finite value of its group of channels.
    Saturate,
}

/// A value that a format cannot hold.
#[derive(Clone, Copy, Debug, Error)]
pub struct OutOfRange {
    /// Of the key or of the value.
    pub side: Side,
    /// Which channel.
    pub channel: usize,
    /// What it is.
    pub value: f32,
    /// How it was to be stored.
    pub format: SlotFormat,
}

impl OutOfRange {
    /// The first value of a row that `format` cannot hold.
    pub fn first_in(row: &[f32], side: Side, format: SlotFormat) -> Option<Self> {
        let channel = row.iter().position(|&value| !format.holds(value))?;
        Some(Self { side, channel, value: row[channel], format })
    }

    /// The formats that can hold it: none if it is infinite or NaN.
    pub fn holders(&self) -> impl Iterator<Item = SlotFormat> {
        let value = self.value;
        SlotFormat::ALL.iter().copied().filter(move |format| format.holds(value))
    }
}

/// NaN too is equal to itself: errors are compared by what they say.
impl PartialEq for OutOfRange {
    fn eq(&self, other: &Self) -> bool {
        let key = |e: &Self| (e.side, e.channel, e.value.to_bits(), e.format);
        key(self) == key(other)
    }
}

impl Eq for OutOfRange {}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, channel, value, format } = self;
        write!(f, "channel {channel} of the {side} is {value}, which ")?;
        if !value.is_finite() {
            return write!(f, "no page format holds ({format} was asked for)");
        }
        let holders: Vec<String> = self.holders().map(|format| format.to_string()).collect();
        let (largest, holders) = (format.largest(), holders.join(", "));
        write!(f, "{format} cannot hold (its largest is {largest}); formats that can: {holders}")
    }
}

impl SlotFormat {
    /// The largest magnitude that is stored.
    pub fn largest(self) -> f32 {
        struct Largest;
        impl CodecVisitor for Largest {
            type Output = f32;
            fn visit<C: Codec>(self) -> f32 {
                C::LARGEST
            }
        }
        self.visit(Largest)
    }

    /// Whether a value can be stored: it is a number, and is not rounded to infinity.
    pub fn holds(self, value: f32) -> bool {
        struct Holds(f32);
        impl CodecVisitor for Holds {
            type Output = bool;
            fn visit<C: Codec>(self) -> bool {
                self.0.abs() < C::OVERFLOW
            }
        }
        self.visit(Holds(value))
    }
}

/// Whether `C` can hold every value of a row.
#[inline(always)]
pub(super) fn holds_all<C: Codec>(row: &[f32]) -> bool {
    // No early exit: that is what makes it a handful of vector instructions.
    row.iter().fold(true, |all, value| all & (value.abs() < C::OVERFLOW))
}
