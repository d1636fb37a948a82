//! Colours that stay apart for colour-blind readers.

/// The class of a series or part, by number: the style sheet colours it after Okabe and Ito (2008).
pub(super) fn series(index: usize) -> String {
    const COLOURS: usize = 7;
    format!("s{}", index % COLOURS)
}

/// A colour for a share of 0 to 1: viridis (van der Walt and Smith, 2015), whose lightness rises evenly,
/// between 9 of its points.
pub(super) fn viridis(share: f64) -> String {
    const POINTS: [[u8; 3]; 9] = [
        [68, 1, 84],
        [72, 40, 120],
        [62, 74, 137],
        [49, 104, 142],
        [38, 130, 142],
        [31, 158, 137],
        [53, 183, 121],
        [110, 206, 88],
        [253, 231, 37],
    ];
    let at = share.clamp(0.0, 1.0) * (POINTS.len() - 1) as f64;
    let below = (at as usize).min(POINTS.len() - 2);
    let between = at - below as f64;
    let mix = |channel: usize| {
        let (a, b) = (POINTS[below][channel], POINTS[below + 1][channel]);
        (f64::from(a) + between * (f64::from(b) - f64::from(a))).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}
