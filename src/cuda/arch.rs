//! GPU architectures by their names.

use std::{fmt, str::FromStr};

use serde::Serialize;
use thiserror::Error;

/// A text that names no architecture.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no GPU architecture; expected one like sm_80, sm_90 or sm_90a")]
pub struct ArchError(pub String);

/// A compute capability, with the letter of an architecture- or family-specific target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Ten times the major number, plus the minor one: 90 is compute capability 9.0.
    number: u32,
    /// `a` or `f` as in `sm_90a`: code that runs on that architecture (or family) alone.
    suffix: Option<char>,
}

impl Arch {
    /// The architectures that every kernel is compiled for in CI: Ampere, Ada, Hopper, Blackwell of
    /// data centres and of desktops.
    pub const TESTED: [Arch; 5] =
        [Arch::new(80), Arch::new(89), Arch::new(90), Arch::new(100), Arch::new(120)];

    /// The oldest one with the kernels' instructions: asynchronous copies and bfloat16 products.
    pub const OLDEST: Arch = Arch::new(80);

    /// The first one with a copy engine for pages: `cp.async.bulk` and barriers that count bytes.
    pub const FIRST_BULK: Arch = Arch::new(90);

    const fn new(number: u32) -> Self {
        Self { number, suffix: None }
    }

    /// The architecture of a device of compute capability `major.minor`.
    pub const fn of_device(major: u32, minor: u32) -> Self {
        Self::new(major * 10 + minor)
    }

    /// Ten times the major number, plus the minor one.
    pub const fn number(self) -> u32 {
        self.number
    }

    /// The virtual architecture that PTX is compiled for, as `compute_90`.
    pub fn virtual_name(self) -> String {
        self.name("compute_")
    }

    /// The real architecture that machine code is compiled for, as `sm_90`.
    pub fn real_name(self) -> String {
        self.name("sm_")
    }

    fn name(self, prefix: &str) -> String {
        let suffix = self.suffix.map(String::from).unwrap_or_default();
        format!("{prefix}{}{suffix}", self.number)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.real_name())
    }
}

impl FromStr for Arch {
    type Err = ArchError;

    /// `sm_90`, `compute_90` or `sm_90a`. Whether the compiler knows it shows when it compiles.
    fn from_str(text: &str) -> Result<Self, ArchError> {
        let parse = || {
            let name = text.strip_prefix("sm_").or_else(|| text.strip_prefix("compute_"))?;
            let suffix = name.chars().next_back().filter(|c| matches!(c, 'a' | 'f'));
            let digits = &name[..name.len() - suffix.map_or(0, char::len_utf8)];
            let plain = digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit());
            let number = plain.then(|| digits.parse().ok()).flatten()?;
            (number >= 10).then_some(Self { number, suffix })
        };
        parse().ok_or_else(|| ArchError(text.to_owned()))
    }
}

impl Serialize for Arch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["sm_80", "sm_90a", "sm_100f", "sm_120"] {
            let arch: Arch = name.parse().unwrap();
            assert_eq!(arch.to_string(), name);
            assert_eq!(arch.virtual_name().parse::<Arch>().unwrap(), arch);
        }
        assert_eq!(Arch::of_device(8, 9), "sm_89".parse().unwrap());
        assert_eq!(Arch::of_device(10, 0).virtual_name(), "compute_100");
    }

    #[test]
    fn other_texts_are_refused() {
        for name in
            ["", "90", "sm_", "sm_a", "sm_9", "sm_90b", "sm_+90", "sm_9000", "hopper", "sm_9é"]
        {
            let error = name.parse::<Arch>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "{name:?} is no GPU architecture; expected one like sm_80, sm_90 or sm_90a"
                )
            );
        }
    }
}
