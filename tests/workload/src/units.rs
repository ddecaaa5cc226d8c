//! Amounts on the command line: `100Mi`, `10Gi`, `500ms`, `1.5s`.

use std::time::Duration;

/// Bytes with an optional binary or decimal suffix.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(format!("`{suffix}` is none of k, M, G, Ki, Mi, Gi")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Seconds, or milliseconds with `ms`, or minutes with `m`.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match () {
        () if text.ends_with("ms") => (text.trim_end_matches("ms"), 0.001),
        () if text.ends_with('s') => (text.trim_end_matches('s'), 1.0),
        () if text.ends_with('m') => (text.trim_end_matches('m'), 60.0),
        () => (text, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no time (500ms, 1.5s, 2m)"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| format!("`{text}` is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        assert_eq!(parse_bytes("100Mi"), Ok(100 << 20));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert!(parse_bytes("Mi").is_err());
        assert!(parse_bytes("1Q").is_err());
        assert_eq!(parse_seconds("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_seconds("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_seconds("-1s").is_err());
    }
}
