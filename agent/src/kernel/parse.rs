//! The few formats of cgroup files, as pure functions.
//!
//! **Approach.** Everything becomes integers; percentages keep the two decimals that the kernel prints. procfs has a parser
//! for pressure files, too, but it wants both lines and gives floats; a cgroup on a kernel before 5.13 has no `full` for CPU.
//!
//! **Properties.** Unknown lines are left out (kernels add some), malformed numbers are an error that shows the line.

/// A line that is not what the format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed line {0:?}")]
pub struct BadLine(
    /// The line, cut to 80 characters.
    pub String,
);

impl BadLine {
    fn of(line: &str) -> Self {
        Self(line.chars().take(80).collect())
    }
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PressureLine {
    /// Microseconds of stall since the cgroup was made.
    pub total_us: u64,
    /// Share of the last 10 s that was stalled, in hundredths of a percent: 0..=10000.
    pub avg10: u32,
    /// The same of the last 60 s.
    pub avg60: u32,
    /// The same of the last 300 s.
    pub avg300: u32,
}

/// A pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Time in which at least one task was stalled.
    pub some: PressureLine,
    /// Time in which all tasks that were not idle were stalled; `None` for CPU before Linux 5.13.
    pub full: Option<PressureLine>,
}

/// A file that is one number.
///
/// # Errors
/// If it is not.
pub fn number(text: &str) -> Result<u64, BadLine> {
    let text = text.trim_end();
    text.parse().map_err(|_| BadLine::of(text))
}

/// A limit: a number, or `max` (v1: a number so large that nothing can reach it) for none.
///
/// # Errors
/// If it is neither.
pub fn limit(text: &str) -> Result<Option<u64>, BadLine> {
    // v1 rounds "no limit" down to a page: LONG_MAX less up to 64 KiB. No machine has 2^62 bytes.
    const NONE: u64 = 1 << 62;
    match text.trim_end() {
        "max" => Ok(None),
        text => number(text).map(|value| (value < NONE).then_some(value)),
    }
}

/// A file of `key value` lines: calls `take` with each that is a number.
///
/// # Errors
/// At the first line whose value is missing or no number.
pub fn flat_keyed(text: &str, mut take: impl FnMut(&str, u64)) -> Result<(), BadLine> {
    for line in text.lines() {
        let (key, value) = line.split_once(' ').ok_or_else(|| BadLine::of(line))?;
        take(key, value.trim().parse().map_err(|_| BadLine::of(line))?);
    }
    Ok(())
}

/// A pressure file.
///
/// # Errors
/// If a line is malformed, or there is no `some`.
pub fn pressure(text: &str) -> Result<Pressure, BadLine> {
    let (mut some, mut full) = (None, None);
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", rest)) => some = Some(pressure_line(line, rest)?),
            Some(("full", rest)) => full = Some(pressure_line(line, rest)?),
            _ => return Err(BadLine::of(line)),
        }
    }
    Ok(Pressure { some: some.ok_or_else(|| BadLine::of(text))?, full })
}

fn pressure_line(line: &str, rest: &str) -> Result<PressureLine, BadLine> {
    let bad = || BadLine::of(line);
    let mut it = PressureLine::default();
    let mut seen_total = false;
    for field in rest.split_ascii_whitespace() {
        match field.split_once('=').ok_or_else(bad)? {
            ("avg10", value) => it.avg10 = hundredths(value).ok_or_else(bad)?,
            ("avg60", value) => it.avg60 = hundredths(value).ok_or_else(bad)?,
            ("avg300", value) => it.avg300 = hundredths(value).ok_or_else(bad)?,
            ("total", value) => {
                it.total_us = value.parse().map_err(|_| bad())?;
                seen_total = true;
            }
            _ => {}
        }
    }
    if seen_total { Ok(it) } else { Err(bad()) }
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.')?;
    if fraction.len() != 2 {
        return None;
    }
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(fraction.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pressure_has_both_lines_or_only_some() {
        let text =
            "some avg10=1.23 avg60=0.50 avg300=100.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let both = pressure(text).unwrap();
        assert_eq!(both.some, PressureLine { total_us: 77, avg10: 123, avg60: 50, avg300: 10000 });
        assert_eq!(both.full.unwrap().total_us, 5);
        assert_eq!(pressure(text.lines().next().unwrap()).unwrap().full, None);
        assert!(pressure("").is_err());
        assert!(pressure("some avg10=1.2 total=1").is_err());
        assert!(pressure("some avg10=1.20").is_err());
    }

    #[test]
    fn no_limit_is_none_on_both_versions() {
        assert_eq!(limit("max\n").unwrap(), None);
        assert_eq!(limit("9223372036854771712\n").unwrap(), None);
        assert_eq!(limit("33554432\n").unwrap(), Some(33_554_432));
        assert_eq!(limit("-1").unwrap_err().to_string(), "malformed line \"-1\"");
    }

    #[test]
    fn keyed_lines_are_taken_until_one_is_malformed() {
        let mut seen = Vec::new();
        let result = flat_keyed("a 1\nb 2\nc x\n", |key, value| seen.push((key.to_owned(), value)));
        assert_eq!(seen, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!(result, Err(BadLine("c x".into())));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>()) {
            let _ = (number(&text), limit(&text), pressure(&text), flat_keyed(&text, |_, _| ()));
        }

        #[test]
        fn pressure_near_the_format_never_panics(text in "(some|full)( (avg10|total)=[0-9.]{0,24}){0,4}\n?") {
            let _ = pressure(&text);
        }
    }
}
