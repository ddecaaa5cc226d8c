//! Durations as Go writes them.
//!
//! Problem: the kubelet's file says `1m30s` and `100ms` (k8s.io/apimachinery/pkg/apis/meta/v1 Duration, which reads Go's
//! time.ParseDuration). Approach: numbers with units, summed exactly in nanoseconds, kept in microseconds.
//!
//! Property: what is negative, finer than a microsecond or beyond 292 years is refused, never rounded.

use std::str::FromStr;

use beelet_core::units::Micros;
use serde::Deserialize;

/// A length of time from a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Duration(pub(crate) Micros);

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write it as in 100ms, 20s, 1m30s or 1h")]
pub(crate) struct NotADuration(String);

impl FromStr for Duration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        nanos(text)
            .filter(|nanos| nanos % 1_000 == 0 && *nanos <= i64::MAX as u128)
            .map(|nanos| Self(Micros((nanos / 1_000) as u64)))
            .ok_or_else(|| NotADuration(text.to_owned()))
    }
}

fn nanos(text: &str) -> Option<u128> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut sum = 0_u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        if whole.len() + fraction.len() == 0 || whole.len() > 19 || fraction.len() > 15 || fraction.contains('.') {
            return None;
        }
        rest = &rest[number..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit: u128 = match &rest[..unit_end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[unit_end..];
        let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        let part = number(fraction)?.checked_mul(unit)?;
        let tens = 10_u128.pow(fraction.len() as u32);
        if part % tens != 0 {
            return None;
        }
        sum = sum.checked_add(number(whole)?.checked_mul(unit)?)?.checked_add(part / tens)?;
    }
    Some(sum)
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_as_go_does() {
        for (text, micros) in [
            ("0", 0),
            ("0s", 0),
            ("100ms", 100_000),
            ("1m30s", 90_000_000),
            ("1.5h", 5_400_000_000),
            (".5s", 500_000),
            ("10us", 10),
            ("10µs", 10),
            ("2h45m0.5s", 9_900_500_000),
            ("+1s", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Duration(Micros(micros))), "{text}");
        }
        for text in
            ["", "1", "s", "-1s", "1d", "1 s", "1s ", "1..5s", ".s", "1ns", "99999999999999999999h", "9999999999h"]
        {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[0-9.hmsnuµ+-]{0,30}") {
            let _ = text.parse::<Duration>();
        }
    }
}
