//! The few formats of cgroup files, as pure functions.
//!
//! **Problem.** Some thousand small files are read each second; a parser that allocates, or checks text for UTF-8, costs as much
//! as the kernel that writes them. **Approach.** Everything is matched as bytes and becomes integers; percentages keep the two
//! decimals that the kernel prints. procfs has a parser for pressure files, too, but it wants both lines and gives floats; a
//! cgroup on a kernel before 5.13 has no `full` for CPU.
//!
//! **Properties.** Nothing is allocated but the message of an error. Unknown lines are left out (kernels add some), malformed
//! numbers are an error that shows the line.

/// A line that is not what the format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed line {0:?}")]
pub struct BadLine(
    /// The line, cut to 80 characters.
    pub String,
);

impl BadLine {
    fn of(line: &[u8]) -> Self {
        Self(String::from_utf8_lossy(&line[..line.len().min(320)]).chars().take(80).collect())
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
pub fn number(text: &[u8]) -> Result<u64, BadLine> {
    let text = text.trim_ascii_end();
    digits(text).ok_or_else(|| BadLine::of(text))
}

/// A limit: a number, or `max` (v1: a number so large that nothing can reach it) for none.
///
/// # Errors
/// If it is neither.
pub fn limit(text: &[u8]) -> Result<Option<u64>, BadLine> {
    // v1 rounds "no limit" down to a page: LONG_MAX less up to 64 KiB. No machine has 2^62 bytes.
    const NONE: u64 = 1 << 62;
    match text.trim_ascii_end() {
        b"max" => Ok(None),
        text => number(text).map(|value| (value < NONE).then_some(value)),
    }
}

/// `cpu.max`: a quota (`max` for none) and a period.
///
/// # Errors
/// If it is not.
pub fn quota(text: &[u8]) -> Result<(Option<u64>, u64), BadLine> {
    let (quota, period) = split(text, b' ').ok_or_else(|| BadLine::of(text))?;
    Ok((limit(quota)?, number(period)?))
}

/// A file of `key value` lines: calls `take` with each that is a number.
///
/// # Errors
/// At the first line whose value is missing or no number.
pub fn flat_keyed(text: &[u8], mut take: impl FnMut(&[u8], u64)) -> Result<(), BadLine> {
    for line in lines(text) {
        let (key, value) = split(line, b' ').ok_or_else(|| BadLine::of(line))?;
        take(key, digits(value.trim_ascii()).ok_or_else(|| BadLine::of(line))?);
    }
    Ok(())
}

/// A file of `key name=value name=value` lines (`io.stat`): calls `take` with each pair; values that are no numbers are left out.
///
/// # Errors
/// At the first line without a key.
pub fn nested_keyed(text: &[u8], mut take: impl FnMut(&[u8], &[u8], u64)) -> Result<(), BadLine> {
    for line in lines(text) {
        let (key, rest) = split(line, b' ').ok_or_else(|| BadLine::of(line))?;
        for pair in words(rest) {
            if let Some((name, value)) = split(pair, b'=')
                && let Some(value) = digits(value)
            {
                take(key, name, value);
            }
        }
    }
    Ok(())
}

/// A device number, `254:0`.
#[must_use]
pub fn device(text: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = split(text, b':')?;
    Some((u32::try_from(digits(major)?).ok()?, u32::try_from(digits(minor)?).ok()?))
}

/// A pressure file.
///
/// # Errors
/// If a line is malformed, or there is no `some`.
pub fn pressure(text: &[u8]) -> Result<Pressure, BadLine> {
    let (mut some, mut full) = (None, None);
    for line in lines(text) {
        match split(line, b' ') {
            Some((b"some", rest)) => some = Some(pressure_line(line, rest)?),
            Some((b"full", rest)) => full = Some(pressure_line(line, rest)?),
            _ => return Err(BadLine::of(line)),
        }
    }
    Ok(Pressure { some: some.ok_or_else(|| BadLine::of(text))?, full })
}

fn pressure_line(line: &[u8], rest: &[u8]) -> Result<PressureLine, BadLine> {
    let bad = || BadLine::of(line);
    let mut it = PressureLine::default();
    let mut seen_total = false;
    for field in words(rest) {
        match split(field, b'=').ok_or_else(bad)? {
            (b"avg10", value) => it.avg10 = hundredths(value).ok_or_else(bad)?,
            (b"avg60", value) => it.avg60 = hundredths(value).ok_or_else(bad)?,
            (b"avg300", value) => it.avg300 = hundredths(value).ok_or_else(bad)?,
            (b"total", value) => {
                it.total_us = digits(value).ok_or_else(bad)?;
                seen_total = true;
            }
            _ => {}
        }
    }
    if seen_total { Ok(it) } else { Err(bad()) }
}

/// `12.34` as 1234.
fn hundredths(text: &[u8]) -> Option<u32> {
    let (whole, fraction) = split(text, b'.')?;
    if fraction.len() != 2 {
        return None;
    }
    let (whole, fraction) = (u32::try_from(digits(whole)?).ok()?, u32::try_from(digits(fraction)?).ok()?);
    whole.checked_mul(100)?.checked_add(fraction)
}

/// Lines without their ends; no empty one after the last.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.strip_suffix(b"\n").unwrap_or(text).split(|&byte| byte == b'\n').filter(move |_| !text.is_empty())
}

/// What is between spaces.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b' ').filter(|word| !word.is_empty())
}

/// What is before and after the first of these bytes.
pub(super) fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let found = text.iter().position(|&byte| byte == at)?;
    Some((&text[..found], &text[found + 1..]))
}

/// A number of nothing but digits.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { sum.checked_mul(10)?.checked_add(digit.into()) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pressure_has_both_lines_or_only_some() {
        let text =
            "some avg10=1.23 avg60=0.50 avg300=100.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let both = pressure(text.as_bytes()).unwrap();
        assert_eq!(both.some, PressureLine { total_us: 77, avg10: 123, avg60: 50, avg300: 10000 });
        assert_eq!(both.full.unwrap().total_us, 5);
        assert_eq!(pressure(text.lines().next().unwrap().as_bytes()).unwrap().full, None);
        assert!(pressure(b"").is_err());
        assert!(pressure(b"some avg10=1.2 total=1").is_err());
        assert!(pressure(b"some avg10=1.20").is_err());
    }

    #[test]
    fn no_limit_is_none_on_both_versions() {
        assert_eq!(limit(b"max\n").unwrap(), None);
        assert_eq!(limit(b"9223372036854771712\n").unwrap(), None);
        assert_eq!(limit(b"33554432\n").unwrap(), Some(33_554_432));
        assert_eq!(limit(b"-1").unwrap_err().to_string(), "malformed line \"-1\"");
    }

    #[test]
    fn keyed_lines_are_taken_until_one_is_malformed() {
        let mut seen = Vec::new();
        let result = flat_keyed(b"a 1\nb 2\nc x\n", |key, value| seen.push((key.to_vec(), value)));
        assert_eq!(seen, [(b"a".to_vec(), 1), (b"b".to_vec(), 2)]);
        assert_eq!(result, Err(BadLine("c x".into())));
    }

    #[test]
    fn numbers_are_digits_that_fit() {
        for bad in ["", "+1", "-1", "1 2", "1x", "18446744073709551616"] {
            assert!(number(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(number(b"18446744073709551615\n"), Ok(u64::MAX));
        assert!(flat_keyed(b"", |_, _| ()).is_ok());
        assert!(flat_keyed(b"\n", |_, _| ()).is_err(), "an empty line is no pair");
    }

    #[test]
    fn devices_have_pairs() {
        let mut seen = Vec::new();
        let text = b"254:0 rbytes=1 wbytes=2 cost.vrate=100.00\n7:1 rios=3\n";
        nested_keyed(text, |key, name, value| seen.push((device(key), name.to_vec(), value))).unwrap();
        let expected = [(Some((254, 0)), "rbytes", 1), (Some((254, 0)), "wbytes", 2), (Some((7, 1)), "rios", 3)];
        assert_eq!(seen, expected.map(|(device, name, value)| (device, name.as_bytes().to_vec(), value)));
        assert_eq!((device(b"7"), device(b"a:1")), (None, None));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in any::<Vec<u8>>()) {
            let _ = (number(&text), limit(&text), pressure(&text), flat_keyed(&text, |_, _| ()));
            let _ = (nested_keyed(&text, |_, _, _| ()), device(&text));
        }

        #[test]
        fn pressure_near_the_format_never_panics(text in "(some|full)( (avg10|total)=[0-9.]{0,24}){0,4}\n?") {
            let _ = pressure(text.as_bytes());
        }

        #[test]
        fn every_number_is_read_as_it_is_written(value in any::<u64>()) {
            prop_assert_eq!(number(format!("{value}\n").as_bytes()), Ok(value));
        }
    }
}
