//! Integer units.
//!
//! Problem: a byte count added to a millicore is a bug that no test finds. Approach: one newtype per unit, integers only,
//! saturating arithmetic (a counter that wrapped must not panic the agent); floats appear only where a metric is written out.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// `self - other`, not below zero.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// `self × num / den` in 128 bits, rounded down, saturating; `den` of zero counts as one.
            #[must_use]
            pub fn scale(self, num: u64, den: u64) -> Self {
                let wide = u128::from(self.0) * u128::from(num) / u128::from(den.max(1));
                Self(u64::try_from(wide).unwrap_or(u64::MAX))
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        /// Saturates at zero.
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
                items.fold(Self::ZERO, Add::add)
            }
        }
    };
}

unit! {
    /// Bytes.
    Bytes
}
unit! {
    /// Thousandths of a CPU core.
    MilliCpu
}
unit! {
    /// Microseconds: a length of time, or a moment on a clock named beside it.
    Micros
}
unit! {
    /// Parts per million.
    Ppm
}

impl Bytes {
    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl Micros {
    /// `n` milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(n.saturating_mul(1_000))
    }

    /// `n` seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }
}

/// In the largest binary unit that divides it, as Kubernetes quantities are written: `100Mi`, `1536Ki`, `17`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIX: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let steps = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() / 10).min(6) };
        write!(f, "{}{}", self.0 >> (steps * 10), SUFFIX[steps as usize])
    }
}

/// As a Kubernetes quantity: `2`, `500m`.
impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1_000) { write!(f, "{}", self.0 / 1_000) } else { write!(f, "{}m", self.0) }
    }
}

/// In seconds, with as many decimals as it needs: `10s`, `0.25s`.
impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if rest == 0 {
            return write!(f, "{whole}s");
        }
        let digits = format!("{rest:06}");
        write!(f, "{whole}.{}s", digits.trim_end_matches('0'))
    }
}

/// The moment of a step, passed in by the caller: the core has no clock of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// On a clock that never jumps (CLOCK_MONOTONIC). All decisions use this one.
    pub mono: Micros,
    /// Since 1970-01-01 UTC. Only for what people read.
    pub wall: Micros,
}

impl Now {
    /// The wall-clock time of a moment `mono`, past or future.
    #[must_use]
    pub fn wall_of(&self, mono: Micros) -> Micros {
        if mono >= self.mono { self.wall + (mono - self.mono) } else { self.wall - (self.mono - mono) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_quantities() {
        for (value, text) in
            [(0, "0"), (1 << 20, "1Mi"), (100 << 20, "100Mi"), (1536, "1536"), (1 << 30, "1Gi"), (2048, "2Ki")]
        {
            assert_eq!(Bytes(value).to_string(), text);
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(1) - Bytes(2), Bytes(0));
        assert_eq!(Bytes(u64::MAX) + Bytes(2), Bytes(u64::MAX));
        assert_eq!(Bytes(u64::MAX).scale(2, 0), Bytes(u64::MAX));
    }

    #[test]
    fn durations_are_written_in_seconds() {
        assert_eq!(Micros::millis(250).to_string(), "0.25s");
        assert_eq!(Micros::secs(10).to_string(), "10s");
    }
}
