//! A page's pair of formats, and the text that names them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    SlotFormat,
    codec::{Codec, CodecVisitor},
};

/// The formats of K and of V in the pages of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageFormat {
    /// How keys are stored.
    pub k: SlotFormat,
    /// How values are stored.
    pub v: SlotFormat,
}

impl PageFormat {
    /// K and V in the same format.
    pub const fn both(format: SlotFormat) -> Self {
        Self { k: format, v: format }
    }
}

impl Default for PageFormat {
    fn default() -> Self {
        Self::both(SlotFormat::F16)
    }
}

impl fmt::Display for PageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.k == self.v {
            write!(f, "{}", self.k)
        } else {
            write!(f, "k={},v={}", self.k, self.v)
        }
    }
}

impl fmt::Display for SlotFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Name;
        impl CodecVisitor for Name {
            type Output = &'static str;
            fn visit<C: Codec>(self) -> &'static str {
                C::NAME
            }
        }
        f.write_str(self.visit(Name))
    }
}

/// A text that names no format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseFormatError {
    /// The name is none of [`SlotFormat::ALL`].
    #[error("unknown format {0:?}; there are {known}", known = known())]
    Unknown(String),
    /// Neither `FORMAT` nor `k=FORMAT,v=FORMAT`.
    #[error("expected FORMAT or k=FORMAT,v=FORMAT, got {0:?}")]
    Syntax(String),
}

fn known() -> String {
    SlotFormat::ALL.iter().map(SlotFormat::to_string).collect::<Vec<_>>().join(", ")
}

impl FromStr for SlotFormat {
    type Err = ParseFormatError;

    fn from_str(name: &str) -> Result<Self, ParseFormatError> {
        let mut all = SlotFormat::ALL.iter().copied();
        all.find(|format| format.to_string() == name)
            .ok_or_else(|| ParseFormatError::Unknown(name.to_owned()))
    }
}

impl FromStr for PageFormat {
    type Err = ParseFormatError;

    /// `f16` (both) or `k=i8,v=f16`, in either order.
    fn from_str(text: &str) -> Result<Self, ParseFormatError> {
        if !text.contains('=') {
            return text.parse().map(Self::both);
        }
        let syntax = || ParseFormatError::Syntax(text.to_owned());
        let (mut k, mut v) = (None, None);
        for part in text.split(',') {
            let (side, format) = part.split_once('=').ok_or_else(syntax)?;
            let slot = match side.trim() {
                "k" => &mut k,
                "v" => &mut v,
                _ => return Err(syntax()),
            };
            if slot.replace(format.trim().parse()?).is_some() {
                return Err(syntax());
            }
        }
        Ok(Self { k: k.ok_or_else(syntax)?, v: v.ok_or_else(syntax)? })
    }
}
