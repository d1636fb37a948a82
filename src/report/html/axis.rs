//! Scales, ticks and how numbers are written on them.

use super::escape::Escaped;
use crate::report::text::Bytes;

/// An axis of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows.
    pub title: String,
    /// How values are spread on it.
    pub scale: Scale,
    /// What its values are counted in.
    pub unit: Unit,
}

/// How values are spread on an axis or over colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equal differences.
    Linear,
    /// Equal steps are equal ratios; only positive values can be shown.
    Log,
}

/// How values are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes with a binary prefix.
    Bytes,
    /// A number, followed by this name; may be empty.
    Named(String),
}

impl Axis {
    /// An axis.
    pub fn new(title: impl Into<String>, scale: Scale, unit: Unit) -> Self {
        Self { title: title.into(), scale, unit }
    }
}

impl Unit {
    /// A plain number.
    pub const NONE: Unit = Unit::Named(String::new());

    /// A value as text.
    pub(super) fn show(&self, value: f64) -> String {
        match self {
            Unit::Bytes => Bytes(value.max(0.0) as usize).to_string(),
            Unit::Named(name) if name.is_empty() => number(value),
            Unit::Named(name) => format!("{} {}", number(value), Escaped(name)),
        }
    }
}

/// At most four significant digits, and no zeros that say nothing.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-5.0..=9.0).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let decimals = (3.0 - magnitude).clamp(0.0, 8.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

impl Scale {
    /// Whether a value has a place on this scale.
    pub(super) fn shows(self, value: f64) -> bool {
        // Within these, spreads, margins and ratios stay inside f64 too.
        const LARGEST: f64 = 1e290;
        value.abs() <= LARGEST && (self == Scale::Linear || value >= LARGEST.recip())
    }

    fn forward(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.ln(),
        }
    }
}

/// A stretch of a scale, wide enough for some values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Domain {
    scale: Scale,
    pub low: f64,
    pub high: f64,
}

impl Domain {
    /// Around all of `values` that the scale shows, with no margin.
    pub fn tight(scale: Scale, values: impl IntoIterator<Item = f64>) -> Self {
        let shown = values.into_iter().filter(|&v| scale.shows(v));
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low > high {
            return Self { scale, low: 1.0, high: 2.0 };
        }
        Self { scale, low, high }
    }

    /// Around all of `values`, with room at both ends so that nothing touches the frame. A linear
    /// domain of values of one sign starts at zero if the values spread widely enough.
    pub fn roomy(scale: Scale, values: impl IntoIterator<Item = f64>) -> Self {
        let Self { low, high, .. } = Self::tight(scale, values);
        match scale {
            Scale::Log => {
                let margin = (high / low).powf(0.08).clamp(1.08, 2.0);
                Self { scale, low: low / margin, high: high * margin }
            }
            Scale::Linear => {
                let spread = if high > low { high - low } else { high.abs().max(1.0) };
                let from_zero = low >= 0.0 && low < 2.0 * spread;
                let bottom = if from_zero { 0.0 } else { low - 0.08 * spread };
                Self { scale, low: bottom, high: high + 0.08 * spread }
            }
        }
    }

    /// Where a value lies, 0 at the low end and 1 at the high one.
    pub fn place(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.forward(self.low), self.scale.forward(self.high));
        if high > low { (self.scale.forward(value) - low) / (high - low) } else { 0.5 }
    }

    /// Round values within the domain, about `count` of them.
    pub fn ticks(&self, unit: &Unit, count: usize) -> Vec<f64> {
        let binary = *unit == Unit::Bytes;
        match self.scale {
            Scale::Linear => self.linear_ticks(binary, count),
            Scale::Log => {
                let ticks = self.log_ticks(binary, count);
                // Less than a decade can hold too few powers.
                if ticks.len() < 3 { self.linear_ticks(binary, count) } else { ticks }
            }
        }
    }

    fn linear_ticks(&self, binary: bool, count: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / count.max(1) as f64;
        // Below that, steps of powers of ten would round to nothing.
        let least = f64::max(self.high.abs() * 1e-12, 100.0 * f64::MIN_POSITIVE);
        let wide_enough = rough.is_finite() && rough > least;
        if !wide_enough {
            return vec![self.low];
        }
        // Steps of 1, 2 or 5 within a power of ten; bytes step in powers of two.
        let step = if binary {
            2f64.powf(rough.max(1.0).log2().ceil())
        } else {
            let power = 10f64.powf(rough.log10().floor());
            power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| s * power >= rough).unwrap_or(10.0)
        };
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }

    fn log_ticks(&self, binary: bool, count: usize) -> Vec<f64> {
        let mantissas: &[&[f64]] =
            if binary { &[&[1.0]] } else { &[&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]] };
        let base: f64 = if binary { 2.0 } else { 10.0 };
        let (first, last) = (self.low.log(base).floor() as i32, self.high.log(base).ceil() as i32);
        let mut ticks = Vec::new();
        for (mantissas, stride) in
            mantissas.iter().map(|&m| (m, 1)).chain((2..).map(|s| (&[1.0][..], s)))
        {
            let powers = (first..=last).filter(|power| power.rem_euclid(stride) == 0);
            ticks = powers
                .flat_map(|power| mantissas.iter().map(move |m| m * base.powi(power)))
                .filter(|tick| (self.low..=self.high).contains(tick))
                .collect();
            if ticks.len() <= count + 2 {
                break;
            }
        }
        ticks
    }
}
