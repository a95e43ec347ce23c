//! A range of ports, as it is written on the command line.

use std::ops::RangeInclusive;

/// A range of ports such as `32768-60999`, or `none`.
///
/// # Errors
/// If it is neither.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text
        .split_once('-')
        .and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?));
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| format!("{text:?} is not a range of ports like 32768-60999, nor none"))
}
