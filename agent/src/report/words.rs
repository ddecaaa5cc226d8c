//! Numbers for people: short, with a unit, never longer than a table's column.

use std::borrow::Cow;

use beelet_core::units::{Bytes, Micros, MilliCpu};

/// `0`, `512B`, `3.4Ki`, `60Mi`, `1.5Gi`: at most two digits after which nothing is lost for a reader.
#[must_use]
pub fn bytes(value: Bytes) -> String {
    const UNITS: [&str; 7] = ["B", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if value == Bytes::ZERO {
        return "0".to_owned();
    }
    let mut step = 0;
    let mut scaled = value.get() as f64;
    // 1023.95 would be written as "1024.0".
    while scaled >= 1023.95 && step + 1 < UNITS.len() {
        scaled /= 1024.0;
        step += 1;
    }
    if step == 0 || scaled >= 99.95 {
        format!("{scaled:.0}{}", UNITS[step])
    } else {
        let text = format!("{scaled:.1}");
        format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), UNITS[step])
    }
}

/// Thousandths of a core: `123m`.
#[must_use]
pub fn cpu(value: MilliCpu) -> String {
    format!("{}m", value.get())
}

/// As `kubectl` writes ages: `5s`, `2m5s`, `3h`, `4d`.
#[must_use]
pub fn duration(value: Micros) -> String {
    let total = value.get() / 1_000_000;
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3_600, total / 60, total % 60);
    match () {
        () if total < 120 => format!("{total}s"),
        () if minutes < 10 && seconds > 0 => format!("{minutes}m{seconds}s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 48 => format!("{hours}h"),
        () => format!("{days}d"),
    }
}

/// A moment as RFC 3339 in UTC, to the second; the number itself if no calendar has it.
#[must_use]
pub fn moment(wall: Micros) -> String {
    let seconds = i64::try_from(wall.get() / 1_000_000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| wall.to_string(), |t| t.to_string())
}

/// Words that somebody else chose, for a log or a terminal: on one line, and without what would move the cursor.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    Cow::Owned(text.trim_end().chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        for (value, text) in [
            (0, "0"),
            (512, "512B"),
            (3 << 10, "3Ki"),
            (3500, "3.4Ki"),
            (60 << 20, "60Mi"),
            (1536 << 20, "1.5Gi"),
            ((1 << 20) - 1, "1Mi"),
            (123 << 20, "123Mi"),
            (u64::MAX, "16Ei"),
        ] {
            assert_eq!(bytes(Bytes(value)), text, "{value}");
        }
    }

    #[test]
    fn plain_words_stay_on_their_line() {
        assert_eq!(plain("as it is, é"), "as it is, é");
        assert_eq!(plain("a\nb\x1b[31m\u{9b}2J\r\n"), "a b?[31m?2J");
    }

    #[test]
    fn durations_are_short() {
        for (secs, text) in
            [(0, "0s"), (119, "119s"), (125, "2m5s"), (600, "10m"), (7200, "120m"), (10_800, "3h"), (200_000, "2d")]
        {
            assert_eq!(duration(Micros::secs(secs)), text, "{secs}");
        }
    }
}
