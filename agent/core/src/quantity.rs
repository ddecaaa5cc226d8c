//! Kubernetes quantities, exactly.
//!
//! Problem: `0.1`, `100m`, `1.5Gi` and `1e3` must mean here what they mean to the API server, to the last byte, and be written
//! back as it would write them; a float gets `0.1` wrong.
//! Approach: a count of billionths (`nano`, the finest suffix) in 128 bits, and the family of suffixes the text used.
//!
//! Terms: *canonical* is how the API server prints a quantity: no fraction, the largest suffix that loses nothing.
//!
//! Properties: what is printed parses to the same number; printed a second time it stays as it is (a binary suffix that went away is
//! forgotten, as upstream: 62.5Ki is printed as 64000, and that as 64k); nothing panics; a number beyond ±(2^63-1) is capped to it, one
//! finer than a billionth is rounded away from zero (k8s.io/apimachinery/pkg/api/resource/quantity.go, 1.37).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::units::{Bytes, MilliCpu};

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// The largest number, in billionths.
const CAP: i128 = (i64::MAX as i128) * NANO;
/// Decimals that a number with a binary suffix may have: more would not fit the exact arithmetic.
const BINARY_DECIMALS: usize = 20;

/// Why a text is not a quantity, or not one that is wanted here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// There is nothing.
    #[error("\"\" is not a quantity: write a number, as in 100Mi, 1.5Gi, 500m or 2")]
    Empty,
    /// It does not begin with a number.
    #[error("{0:?} is not a quantity: it has to begin with a number, as in 100Mi, 1.5Gi, 500m or 2")]
    Number(String),
    /// What follows the number is no suffix.
    #[error(
        "{text:?} is not a quantity: {suffix:?} is not a suffix; one of n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent as e3"
    )]
    Suffix {
        /// The whole text.
        text: String,
        /// What stands for a suffix.
        suffix: String,
    },
    /// A binary suffix after too many decimals.
    #[error("{0:?} is too fine: a number with a binary suffix has at most {BINARY_DECIMALS} decimals")]
    TooFine(String),
    /// It is below zero.
    #[error("{0:?} is negative: the amount has to be zero or more")]
    Negative(String),
}

/// Which family of suffixes a quantity was written with, and is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`, or none.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`.
    DecimalExponent,
}

/// An exact number with the family of suffixes it was written with. Equal and ordered by the number alone.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

impl Quantity {
    /// Billionths.
    #[must_use]
    pub const fn nano(&self) -> i128 {
        self.nano
    }

    /// The family of suffixes.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The whole number, rounded away from zero (Quantity.Value()).
    #[must_use]
    pub fn value(&self) -> i64 {
        away_from_zero(self.nano, NANO)
    }

    /// Thousandths, rounded away from zero, saturating (Quantity.MilliValue()).
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        away_from_zero(self.nano, NANO / 1_000)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

fn away_from_zero(nano: i128, unit: i128) -> i64 {
    let (whole, rest) = (nano / unit, nano % unit);
    let wide = whole + rest.signum();
    i64::try_from(wide).unwrap_or(if wide < 0 { i64::MIN } else { i64::MAX })
}

/// How the suffix scales the number.
#[derive(Clone, Copy)]
enum Scale {
    /// By a power of ten.
    Ten(i64),
    /// By a power of two.
    Two(u32),
}

fn scale(suffix: &str) -> Option<(Scale, Format)> {
    let ten = |power| Some((Scale::Ten(power), Format::DecimalSi));
    let two = |power| Some((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "" => ten(0),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        "Ki" => two(10),
        "Mi" => two(20),
        "Gi" => two(30),
        "Ti" => two(40),
        "Pi" => two(50),
        "Ei" => two(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            Some((Scale::Ten(exponent.parse().ok()?), Format::DecimalExponent))
        }
    }
}

/// The number made of decimal digits; the caller keeps them below 39.
fn digits(text: &str) -> i128 {
    text.bytes().fold(0_i128, |sum, d| sum.saturating_mul(10).saturating_add(i128::from(d.wrapping_sub(b'0'))))
}

/// `whole.fraction × 10^power` in billionths, without a sign; rounded up, capped.
fn decimal(whole: &str, fraction: &str, power: i64) -> i128 {
    let all = format!("{whole}{fraction}");
    let mantissa = all.trim_start_matches('0');
    if mantissa.is_empty() {
        return 0;
    }
    // The decimal point of the count of billionths stands this many digits into the mantissa.
    let point = i128::from(power) + 9 - fraction.len() as i128 + mantissa.len() as i128;
    if point > 28 {
        return CAP;
    }
    let point = usize::try_from(point).unwrap_or(0);
    let counted = if point >= mantissa.len() {
        digits(mantissa) * 10_i128.pow((point - mantissa.len()) as u32)
    } else {
        digits(&mantissa[..point]) + i128::from(mantissa[point..].bytes().any(|d| d != b'0'))
    };
    counted.min(CAP)
}

/// `whole.fraction × 2^power` in billionths, without a sign; rounded up, capped. `None` if it has too many decimals.
fn binary(whole: &str, fraction: &str, power: u32) -> Option<i128> {
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if fraction.len() > BINARY_DECIMALS {
        return None;
    }
    if whole.len() > 19 {
        return Some(CAP);
    }
    let ones = digits(whole) << power;
    if ones > CAP / NANO {
        return Some(CAP);
    }
    // Below 10^20 × 2^60, which fits.
    let part = digits(fraction) << power;
    let decimals = fraction.len() as u32;
    let part = if decimals <= 9 {
        part * 10_i128.pow(9 - decimals)
    } else {
        let unit = 10_i128.pow(decimals - 9);
        part / unit + (part % unit).signum()
    };
    Some((ones * NANO + part).min(CAP))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Empty);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let count = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = rest.split_at(count(rest));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(count(rest)),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Number(text.to_owned()));
        }
        let Some((scale, format)) = scale(suffix) else {
            return Err(QuantityError::Suffix { text: text.to_owned(), suffix: suffix.to_owned() });
        };
        let nano = match scale {
            Scale::Ten(power) => decimal(whole, fraction, power),
            Scale::Two(power) => {
                binary(whole, fraction, power).ok_or_else(|| QuantityError::TooFine(text.to_owned()))?
            }
        };
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }
}

/// Canonical, as the API server prints it: `1500m`, `1536Mi`, `1k`, `12e6`.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Upstream shows small and fractional numbers in decimals whatever they were written with, to lose nothing.
        let whole = self.nano % NANO == 0;
        if self.format == Format::BinarySi && whole && self.nano.abs() >= 1024 * NANO {
            const SUFFIX: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let ones = self.nano / NANO;
            let steps = (ones.trailing_zeros() / 10).min(6) as usize;
            return write!(f, "{}{}", ones / (1 << (10 * steps)), SUFFIX[steps]);
        }
        const SUFFIX: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let (mut mantissa, mut steps) = (self.nano, 0_usize);
        while mantissa % 1_000 == 0 && steps + 1 < SUFFIX.len() {
            mantissa /= 1_000;
            steps += 1;
        }
        match self.format {
            Format::DecimalExponent if steps != 3 => write!(f, "{mantissa}e{}", 3 * steps as i64 - 9),
            Format::DecimalExponent => write!(f, "{mantissa}"),
            Format::DecimalSi | Format::BinarySi => write!(f, "{mantissa}{}", SUFFIX[steps]),
        }
    }
}

fn not_negative(text: &str) -> Result<Quantity, QuantityError> {
    let quantity: Quantity = text.parse()?;
    if quantity.nano < 0 { Err(QuantityError::Negative(text.to_owned())) } else { Ok(quantity) }
}

/// An amount of memory or disk; a fraction of a byte counts as one, as Quantity.Value() does.
///
/// # Errors
/// It is not a quantity, or negative.
pub fn parse_bytes(text: &str) -> Result<Bytes, QuantityError> {
    Ok(Bytes(not_negative(text)?.value().unsigned_abs()))
}

/// An amount of CPU; a fraction of a thousandth counts as one, as Quantity.MilliValue() does.
///
/// # Errors
/// It is not a quantity, or negative.
pub fn parse_cpu(text: &str) -> Result<MilliCpu, QuantityError> {
    Ok(MilliCpu(not_negative(text)?.milli_value().unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text, canonical form, whole number, thousandths; worked out by the rules of the type's documentation upstream.
    #[test]
    fn means_what_the_api_server_means() {
        for (text, canonical, value, milli) in [
            ("0", "0", 0, 0),
            ("0Mi", "0", 0, 0),
            ("100Mi", "100Mi", 104_857_600, 104_857_600_000),
            ("1.5Gi", "1536Mi", 1_610_612_736, 1_610_612_736_000),
            ("1024", "1024", 1_024, 1_024_000),
            ("1000", "1k", 1_000, 1_000_000),
            ("1Ki", "1Ki", 1_024, 1_024_000),
            ("0.5Ki", "512", 512, 512_000),
            ("0.05Gi", "53687091200m", 53_687_092, 53_687_091_200),
            ("1e3", "1e3", 1_000, 1_000_000),
            ("1E3", "1e3", 1_000, 1_000_000),
            ("1e0", "1", 1, 1_000),
            ("100e-3", "100e-3", 1, 100),
            ("1E", "1E", 1_000_000_000_000_000_000, i64::MAX),
            ("500m", "500m", 1, 500),
            ("0.1", "100m", 1, 100),
            ("1.5", "1500m", 2, 1_500),
            ("2.", "2", 2, 2_000),
            (".5", "500m", 1, 500),
            ("+3", "3", 3, 3_000),
            ("-1", "-1", -1, -1_000),
            ("-1.5Ki", "-1536", -1_536, -1_536_000),
            ("-2.5Ki", "-2560", -2_560, -2_560_000),
            ("62.5Ki", "64000", 64_000, 64_000_000),
            ("0.1m", "100u", 1, 1),
            ("1n", "1n", 1, 1),
            ("0.1n", "1n", 1, 1),
            ("-0.1n", "-1n", -1, -1),
            ("1e-30", "1e-9", 1, 1),
            ("12345678901234567890", "9223372036854775807", i64::MAX, i64::MAX),
            ("9Ei", "9223372036854775807", i64::MAX, i64::MAX),
            ("1e999999999", "9223372036854775807", i64::MAX, i64::MAX),
            ("007", "7", 7, 7_000),
            ("0.00000000000000000001Ei", "11529216n", 1, 12),
        ] {
            let quantity: Quantity = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!((quantity.value(), quantity.milli_value()), (value, milli), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_says_why() {
        for (text, part) in [
            ("", "write a number"),
            ("abc", "begin with a number"),
            (".", "begin with a number"),
            ("-", "begin with a number"),
            ("12XB", "\"XB\" is not a suffix"),
            ("1 Gi", "\" Gi\" is not a suffix"),
            ("1K", "\"K\" is not a suffix"),
            ("1mi", "\"mi\" is not a suffix"),
            ("1e", "\"e\" is not a suffix"),
            ("1e1.5", "is not a suffix"),
            ("1.2.3", "\".3\" is not a suffix"),
            ("1Gib", "\"Gib\" is not a suffix"),
            ("1ü", "\"ü\" is not a suffix"),
            ("0.000000000000000000001Ki", "too fine"),
        ] {
            let error = text.parse::<Quantity>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn amounts_round_up_and_are_not_negative() {
        assert_eq!(parse_bytes("1.5"), Ok(Bytes(2)));
        assert_eq!(parse_bytes("100Mi"), Ok(Bytes::mib(100)));
        assert_eq!(parse_cpu("0.0001"), Ok(MilliCpu(1)));
        assert_eq!(parse_cpu("2"), Ok(MilliCpu(2_000)));
        assert_eq!(parse_cpu("-1m"), Err(QuantityError::Negative("-1m".to_owned())));
        assert_eq!(parse_bytes("-1"), Err(QuantityError::Negative("-1".to_owned())));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn what_is_printed_is_the_same_number(
            whole in "[0-9]{0,22}", fraction in "[0-9]{1,20}",
            suffix in "|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,2}", minus in any::<bool>(),
        ) {
            let text = format!("{}{whole}.{fraction}{suffix}", if minus { "-" } else { "" });
            let first: Quantity = text.parse().unwrap();
            let second: Quantity = first.to_string().parse().unwrap();
            prop_assert_eq!(first, second);
            let third: Quantity = second.to_string().parse().unwrap();
            prop_assert_eq!((third, third.to_string()), (second, second.to_string()));
            prop_assert!(first.nano().abs() <= CAP);
        }

        #[test]
        fn bytes_print_and_parse_back(bytes in 0..=i64::MAX as u64) {
            prop_assert_eq!(parse_bytes(&Bytes(bytes).to_string()), Ok(Bytes(bytes)));
        }

        #[test]
        fn order_is_that_of_the_numbers(a in any::<i64>(), b in any::<i64>()) {
            let quantity = |n: i64| format!("{n}n").parse::<Quantity>().unwrap();
            prop_assert_eq!(quantity(a).cmp(&quantity(b)), a.cmp(&b));
        }
    }
}
