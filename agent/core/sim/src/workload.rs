//! What the processes of a container do.
//!
//! Problem: eviction is right or wrong only against workloads that misbehave in known ways. Approach: each [`Curve`] says in closed
//! form what a container holds at an age, how fast it reads files, what CPU it wants and when it ends. It travels as JSON in the
//! container's `args`, so that a trace says what ran.

use beelet_core::spec::ContainerSpec;
use beelet_core::units::{Bytes, Micros, MilliCpu};
use serde::{Deserialize, Serialize};

/// A way to use memory and CPU. Rates are per second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// Holds this and does nothing.
    Idle {
        /// What it holds.
        holds: Bytes,
    },
    /// Grows for ever.
    Leak {
        /// Before.
        after: Micros,
        /// Per second.
        rate: Bytes,
    },
    /// Takes much at once.
    Step {
        /// When.
        at: Micros,
        /// How much.
        to: Bytes,
    },
    /// Processes that double in number.
    ForkBomb {
        /// What one of them holds.
        each: Bytes,
        /// Their number doubles in this time.
        doubling: Micros,
        /// There are not more.
        most: u64,
    },
    /// Fills a memory volume; that stays when the container ends.
    Tmpfs {
        /// Per second.
        rate: Bytes,
        /// The volume's size.
        most: Bytes,
    },
    /// Reads files, and deletes them now and then.
    Scan {
        /// Per second.
        rate: Bytes,
        /// The cache is dropped this often.
        drop_every: Micros,
    },
    /// A heap that grows to its full size, slower and slower.
    Jvm {
        /// The full size.
        plateau: Bytes,
        /// Half of the rest is taken in this time.
        half: Micros,
    },
    /// A garbage collector.
    Saw {
        /// After a collection.
        low: Bytes,
        /// Before it.
        high: Bytes,
        /// From one to the next.
        period: Micros,
    },
    /// Takes memory at a rate until it has so much, and keeps it: a step as a process can make it.
    Fill {
        /// From then on.
        at: Micros,
        /// Per second.
        rate: Bytes,
        /// How much.
        to: Bytes,
    },
    /// A leak that pauses and goes on.
    Stutter {
        /// Per second, while it grows.
        rate: Bytes,
        /// It grows for this long ...
        grows: Micros,
        /// ... and rests for this long.
        rests: Micros,
    },
    /// A build: compilers that come, take memory and go.
    Peaks {
        /// Between them.
        low: Bytes,
        /// At the end of each.
        high: Bytes,
        /// From one to the next.
        every: Micros,
        /// How long one rises.
        lasts: Micros,
    },
    /// Ends badly.
    Crash {
        /// When.
        after: Micros,
        /// How.
        code: i32,
    },
    /// Ends well.
    Job {
        /// When.
        takes: Micros,
    },
    /// Holds this until it ends well, as one that is being deleted.
    Leave {
        /// What it holds.
        holds: Bytes,
        /// When.
        after: Micros,
    },
    /// Wants CPU.
    Burn {
        /// How much.
        cpu: MilliCpu,
    },
}

/// What a bare process holds.
const LEAST: Bytes = Bytes::mib(4);

impl Curve {
    /// Put into a container.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        vec![serde_json::to_string(self).unwrap_or_default()]
    }

    /// What is in a container.
    #[must_use]
    pub fn of(container: &ContainerSpec) -> Self {
        let text = container.args.first().map_or("", String::as_str);
        serde_json::from_str(text).unwrap_or(Self::Idle { holds: LEAST })
    }

    /// Anonymous memory at an age.
    #[must_use]
    pub fn anon(&self, age: Micros) -> Bytes {
        let second = 1_000_000;
        match *self {
            Self::Idle { holds } | Self::Leave { holds, .. } => holds,
            Self::Leak { after, rate } => LEAST + rate.scale((age - after).get(), second),
            Self::Step { at, to } => {
                if age < at {
                    LEAST
                } else {
                    LEAST.max(to)
                }
            }
            Self::ForkBomb { each, .. } => each.scale(self.pids(age), 1),
            Self::Jvm { plateau, half } => {
                // Halves of the rest, in a straight line within each.
                let halves = (age.get() / half.get().max(1)).min(40);
                let rest = Bytes(plateau.get() >> halves);
                let part = (rest - Bytes(rest.get() / 2)).scale(age.get() % half.get().max(1), half.get());
                LEAST.max(plateau - rest + part)
            }
            Self::Saw { low, high, period } => Self::Peaks { low, high, every: period, lasts: period }.anon(age),
            Self::Peaks { low, high, every, lasts } => {
                let into = age.get() % every.get().max(1);
                if into < lasts.get() { low + (high - low).scale(into, lasts.get()) } else { low }
            }
            Self::Fill { at, rate, to } => LEAST.max(rate.scale((age - at).get(), second).min(to)),
            Self::Stutter { rate, grows, rests } => {
                let cycle = (grows + rests).get().max(1);
                let grown = age.get() / cycle * grows.get() + (age.get() % cycle).min(grows.get());
                LEAST + rate.scale(grown, second)
            }
            Self::Tmpfs { .. } | Self::Scan { .. } | Self::Crash { .. } | Self::Job { .. } | Self::Burn { .. } => LEAST,
        }
    }

    /// Shared memory in a volume at an age.
    #[must_use]
    pub fn shmem(&self, age: Micros) -> Bytes {
        match *self {
            Self::Tmpfs { rate, most } => rate.scale(age.get(), 1_000_000).min(most),
            _ => Bytes::ZERO,
        }
    }

    /// File cache that it makes, per second, and how often it deletes the files.
    #[must_use]
    pub fn cache(&self) -> (Bytes, Option<Micros>) {
        match *self {
            Self::Scan { rate, drop_every } => (rate, Some(drop_every)),
            Self::Leak { .. } => (Bytes::mib(1), None),
            _ => (Bytes(64 << 10), None),
        }
    }

    /// The CPU it wants.
    #[must_use]
    pub fn cpu(&self) -> MilliCpu {
        match *self {
            Self::Burn { cpu } => cpu,
            Self::Scan { .. } | Self::Saw { .. } | Self::Peaks { .. } | Self::ForkBomb { .. } => MilliCpu(600),
            Self::Idle { .. } | Self::Leave { .. } => MilliCpu(1),
            _ => MilliCpu(100),
        }
    }

    /// Processes at an age.
    #[must_use]
    pub fn pids(&self, age: Micros) -> u64 {
        match *self {
            Self::ForkBomb { doubling, most, .. } => {
                let doubling = doubling.get().max(1);
                let whole = 1_u64 << (age.get() / doubling).min(20);
                (whole + Bytes(whole).scale(age.get() % doubling, doubling).get()).min(most)
            }
            _ => 1,
        }
    }

    /// When it ends by itself, and how.
    #[must_use]
    pub fn end(&self) -> Option<(Micros, i32)> {
        match *self {
            Self::Crash { after, code } => Some((after, code)),
            Self::Job { takes } | Self::Leave { after: takes, .. } => Some((takes, 0)),
            _ => None,
        }
    }

    /// It may use up a node.
    #[must_use]
    pub fn grows(&self) -> bool {
        matches!(
            self,
            Self::Leak { .. }
                | Self::Step { .. }
                | Self::Fill { .. }
                | Self::Stutter { .. }
                | Self::ForkBomb { .. }
                | Self::Tmpfs { .. }
                | Self::Jvm { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_go_where_their_names_say() {
        let at = |c: &Curve, s| c.anon(Micros::secs(s)).get() >> 20;
        let leak = Curve::Leak { after: Micros::secs(2), rate: Bytes::mib(10) };
        assert_eq!((at(&leak, 1), at(&leak, 12)), (4, 104));
        let heap = Curve::Jvm { plateau: Bytes::mib(800), half: Micros::secs(10) };
        assert_eq!((at(&heap, 10), at(&heap, 20), at(&heap, 15)), (400, 600, 500));
        let saw = Curve::Saw { low: Bytes::mib(100), high: Bytes::mib(300), period: Micros::secs(10) };
        assert_eq!((at(&saw, 5), at(&saw, 10), at(&saw, 15)), (200, 100, 200));
        let bomb = Curve::ForkBomb { each: Bytes::mib(2), doubling: Micros::secs(1), most: 100 };
        assert_eq!((at(&bomb, 3), at(&bomb, 9)), (16, 200));
        let fill = Curve::Fill { at: Micros::secs(2), rate: Bytes::mib(100), to: Bytes::mib(250) };
        assert_eq!((at(&fill, 2), at(&fill, 4), at(&fill, 9)), (4, 200, 250));
        let stutter = Curve::Stutter { rate: Bytes::mib(10), grows: Micros::secs(2), rests: Micros::secs(3) };
        assert_eq!((at(&stutter, 1), at(&stutter, 4), at(&stutter, 6)), (14, 24, 34));
        let (every, lasts) = (Micros::secs(10), Micros::secs(2));
        let build = Curve::Peaks { low: Bytes::mib(100), high: Bytes::mib(300), every, lasts };
        assert_eq!((at(&build, 1), at(&build, 2), at(&build, 11)), (200, 100, 200));
    }
}
