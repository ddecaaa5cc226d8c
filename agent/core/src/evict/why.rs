//! Why this one and not the next.
//!
//! Problem: a ranking is a list of numbers, and who lost a pod asks one thing: why mine? Approach: the first of the order is held against
//! the second by the same steps as [`super::rank`], and the first step that tells them apart is said with its numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rank::Ranked;

/// What decided between the first and the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum By {
    /// There was no second.
    Alone,
    /// It was evicted before, and its time was taken away.
    Hastened,
    /// It holds more than it requests, the second does not.
    Request,
    /// Its priority is lower.
    Priority,
    /// It ate the room, the second did not.
    Aggressor,
    /// It holds more above its request.
    Excess,
    /// It grows faster.
    Growth,
    /// Nothing but its name.
    Name,
}

impl By {
    /// Those that are counted: whose time is taken away was evicted before.
    pub const COUNTED: [Self; 7] =
        [Self::Alone, Self::Request, Self::Priority, Self::Aggressor, Self::Excess, Self::Growth, Self::Name];

    /// For a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Hastened => "hastened",
            Self::Request => "request",
            Self::Priority => "priority",
            Self::Aggressor => "aggressor",
            Self::Excess => "excess",
            Self::Growth => "growth",
            Self::Name => "name",
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What puts the first of an order before the second, for a label and for people.
#[must_use]
pub fn before(order: &[Ranked]) -> (By, String) {
    let (Some(a), Some(b)) = (order.first(), order.get(1)) else {
        return (By::Alone, "no other pod may be evicted".to_owned());
    };
    let over = |r: &Ranked| i128::from(r.unreclaimable.get()) - i128::from(r.request.get());
    let uses = |r: &Ranked| format!("holds {}, requests {}", r.unreclaimable, r.request);
    let (by, why) = if a.exceeds != b.exceeds {
        (By::Request, format!("above its request ({}), the other is not ({})", uses(a), uses(b)))
    } else if a.priority != b.priority {
        (By::Priority, format!("lower priority ({} < {})", a.priority, b.priority))
    } else if a.aggressor != b.aggressor {
        let took = format!("took {} lately, the other {}", a.taken, b.taken);
        (By::Aggressor, format!("it is the one that eats the room ({took})"))
    } else if over(a) != over(b) {
        let way = if a.exceeds { "more above its request" } else { "less below its request" };
        (By::Excess, format!("{way} ({}; the other {})", uses(a), uses(b)))
    } else if a.growth != b.growth {
        let growth = |r: &Ranked| r.growth.map_or_else(|| "unknown".to_owned(), |g| format!("{g} B/s"));
        (By::Growth, format!("grows faster ({}, the other {})", growth(a), growth(b)))
    } else {
        (By::Name, "alike in all but the name".to_owned())
    };
    (by, format!("before {}: {why}", b.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn ranked(name: &str, holds: u64, request: u64, priority: i32) -> Ranked {
        Ranked {
            uid: name.into(),
            name: format!("default/{name}"),
            exceeds: holds > request,
            priority,
            unreclaimable: Bytes::mib(holds),
            request: Bytes::mib(request),
            growth: Some(0),
            taken: Bytes::ZERO,
            aggressor: false,
        }
    }

    #[test]
    fn the_first_step_that_tells_them_apart_is_said_with_its_numbers() {
        let a = ranked("a", 300, 0, 0);
        let cases = [
            (ranked("b", 500, 600, -5), By::Request, "above its request"),
            (ranked("b", 900, 0, 1_000), By::Priority, "lower priority (0 < 1000)"),
            (ranked("b", 200, 0, 0), By::Excess, "more above its request"),
            (
                Ranked { growth: Some(-1), ..ranked("b", 300, 0, 0) },
                By::Growth,
                "grows faster (0 B/s, the other -1 B/s)",
            ),
            (ranked("b", 300, 0, 0), By::Name, "alike in all but the name"),
        ];
        for (b, by, text) in cases {
            let (got, why) = before(&[a.clone(), b]);
            assert_eq!(got, by);
            assert!(why.starts_with("before default/b: ") && why.contains(text), "{why}");
        }
        let eats = Ranked { aggressor: true, taken: Bytes::mib(120), ..ranked("a", 300, 0, 0) };
        let (by, why) = before(&[eats, ranked("b", 900, 0, 0)]);
        assert!(by == By::Aggressor && why.contains("eats the room (took 120Mi lately, the other 0"), "{why}");
        assert_eq!(before(&[a]).0, By::Alone);
        assert!(before(&[ranked("a", 1, 100, 0), ranked("b", 1, 300, 0)]).1.contains("less below"));
    }
}
