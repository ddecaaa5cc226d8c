//! What the agent itself may cost.
//!
//! Problem: measuring costs CPU time, and on a node with many pods or a slow CPU it may cost more than it is worth. But of what an
//! agent costs, looking less often helps against the looks alone: eBPF programs cost what the pods make them run, starting pods and
//! answering scrapes cost what they cost; an agent that goes blind for their sake saves nothing and is late where it matters.
//! Approach: a [`Budget`] gets the agent's costs each second ([`crate::event::Event::OwnCost`]). Full looks may have what the rest
//! leaves of the budget, and a quarter of it in any case ([`LOOKS_AT_LEAST`]). While they take more, they and looks at details are
//! taken further apart, step by step, and closer again when they would still fit. The agent says so when it begins and when it ends.
//!
//! Terms: *share* is the cost over the last [`LONG`], in parts per million of one core, *looking* the part of it that goes with the
//! number of full looks; *stretch* is the factor on the distance of looks, in thousandths.
//!
//! Properties (tested): the stretch is 1000..=[`MOST`]; it rises only after [`LONG`] of looks above what they may take, and falls
//! only after [`CALM`] in which the next smaller one would fit; looks within their quarter are never stretched, whatever the rest
//! costs; costs around the budget do not make it swing; what looks cost while memory is urgent is not held against them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::units::{Micros, Ppm};

/// 1 % of one core per 100 pods. The stock kubelet needs 5.2 % at 100 idle pods.
pub const PER_100_PODS: Ppm = Ppm(10_000);
/// The part of the budget that looks may take whatever the rest costs: one in so many.
pub const LOOKS_AT_LEAST: u64 = 4;
/// The cost is taken over this long, so that a listing or a scrape is no reason.
pub const LONG: Micros = Micros::secs(10);
/// So long the smaller stretch must fit before it is taken.
pub const CALM: Micros = Micros::secs(30);
/// An agent that starts loads programs and reads everything once: this long nothing is held against it.
pub const START: Micros = Micros::secs(30);
/// No stretch.
pub const NONE: u32 = 1_000;
/// Ten times: full looks each 10 s, as the stock kubelet takes them.
pub const MOST: u32 = 10_000;
/// The costs that are kept: one each second for [`LONG`], and some more for clocks that are not exact.
const KEPT: usize = 16;

/// The agent's cost at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCost {
    /// CPU time of the agent and its eBPF programs, of one core; `None` before it is known.
    pub share: Option<Ppm>,
    /// The part of it that goes with the number of full looks; `None` before it is known.
    pub looking: Option<Ppm>,
    /// What it may be.
    pub budget: Ppm,
    /// The factor on the distance of looks, in thousandths; 1000 for none.
    pub stretch: u32,
}

/// A step up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The agent begins to look less often.
    Begins,
    /// It looks still less often, or a little more often.
    Changes,
    /// It looks as often as it should.
    Ends,
}

/// What the agent has cost since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// CPU time of the process and of its eBPF programs.
    pub all: Micros,
    /// The part of it that goes with the number of full looks.
    pub looking: Micros,
}

/// Watches the agent's cost.
#[derive(Clone, Debug)]
pub struct Budget {
    per_100_pods: Ppm,
    began: Option<Micros>,
    /// What was spent, at moments, the newest last.
    costs: VecDeque<(Micros, Spent)>,
    share: Option<Ppm>,
    looking: Option<Ppm>,
    budget: Ppm,
    stretch: u32,
    /// Since when the next smaller stretch would fit.
    calm: Option<Micros>,
    /// When looks last had another reason to be close.
    excused: Option<Micros>,
}

impl Budget {
    /// With so much of one core for each 100 pods; zero for no budget at all.
    #[must_use]
    pub fn new(per_100_pods: Ppm) -> Self {
        Self {
            per_100_pods,
            began: None,
            costs: VecDeque::new(),
            share: None,
            looking: None,
            budget: per_100_pods,
            stretch: NONE,
            calm: None,
            excused: None,
        }
    }

    /// The cost and what follows from it.
    #[must_use]
    pub fn cost(&self) -> OwnCost {
        OwnCost { share: self.share, looking: self.looking, budget: self.budget, stretch: self.stretch }
    }

    /// The stretch, in thousandths.
    #[must_use]
    pub fn stretch(&self) -> u32 {
        self.stretch
    }

    /// Takes what was spent until `at` (monotonic), on a node with so many pods.
    pub fn observe(&mut self, at: Micros, spent: Spent, pods: usize) -> Option<Turn> {
        let hundredths = u64::try_from(pods).unwrap_or(u64::MAX).max(100);
        self.budget = self.per_100_pods.scale(hundredths, 100);
        let began = *self.began.get_or_insert(at);
        let is_after =
            |(last, before): &(Micros, Spent)| at > *last && spent.all >= before.all && spent.looking >= before.looking;
        // A counter that went backwards (a program was loaded anew) begins anew.
        if self.costs.back().is_some_and(|last| !is_after(last)) {
            self.costs.clear();
        }
        self.costs.push_back((at, spent));
        while self.costs.len() > KEPT || self.costs.get(1).is_some_and(|(t, _)| at - *t >= LONG) {
            self.costs.pop_front();
        }
        let (from, before) = *self.costs.front()?;
        if at - from < LONG {
            return None;
        }
        let share_of = |time: Micros| Ppm(time.scale(1_000_000, (at - from).get()).get());
        let (share, looking) = (share_of(spent.all - before.all), share_of(spent.looking - before.looking));
        (self.share, self.looking) = (Some(share), Some(looking));
        let excused = self.excused.is_some_and(|last| at - last <= LONG);
        if self.per_100_pods == Ppm(0) || at - began < START + LONG || excused {
            return None;
        }
        let rest = Ppm(share.get().saturating_sub(looking.get()));
        let left = Ppm(self.budget.get().saturating_sub(rest.get()));
        let may = left.max(self.budget.scale(1, LOOKS_AT_LEAST));
        if looking > may {
            self.calm = None;
            return if self.stretch < MOST { Some(self.turn(scaled(self.stretch, 3, 2).min(MOST))) } else { None };
        }
        // All of it counts as if it grew with the number of looks; some of it does not, so this is on the safe side.
        let fits = looking.scale(3, 2) <= may.scale(9, 10);
        if self.stretch == NONE || !fits {
            self.calm = None;
            return None;
        }
        let since = *self.calm.get_or_insert(at);
        (at - since >= CALM).then(|| self.turn(scaled(self.stretch, 2, 3).max(NONE)))
    }

    /// Takes nothing of what is spent for a sign until [`LONG`] after `at`: looks have another reason to be as close as they are.
    pub fn excuse(&mut self, at: Micros) {
        self.excused = Some(at);
        self.calm = None;
    }

    fn turn(&mut self, stretch: u32) -> Turn {
        let before = std::mem::replace(&mut self.stretch, stretch);
        // What the new pace costs is measured from here on.
        self.costs.clear();
        self.calm = None;
        match (before, stretch) {
            (NONE, _) => Turn::Begins,
            (_, NONE) => Turn::Ends,
            _ => Turn::Changes,
        }
    }
}

fn scaled(stretch: u32, num: u32, den: u32) -> u32 {
    stretch.saturating_mul(num) / den
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that costs `rest` and, at no stretch, `looks`, in microseconds each second.
    fn run(budget: &mut Budget, at: &mut u64, spent: &mut Spent, rest: u64, looks: u64, seconds: u64) -> Vec<Turn> {
        let mut turns = Vec::new();
        for _ in 0..seconds {
            *at += 1;
            let looking = Micros(looks * 1_000 / u64::from(budget.stretch()));
            spent.looking += looking;
            spent.all += looking + Micros(rest);
            turns.extend(budget.observe(Micros::secs(*at), *spent, 50));
        }
        turns
    }

    fn fresh() -> (Budget, u64, Spent) {
        (Budget::new(PER_100_PODS), 100, Spent::default())
    }

    #[test]
    fn it_steps_up_until_it_fits_and_comes_back_when_it_is_cheap_again() {
        let (mut budget, mut at, mut spent) = fresh();
        assert_eq!(run(&mut budget, &mut at, &mut spent, 1_000, 4_000, 300), []);
        let (share, looking) = (Some(Ppm(5_000)), Some(Ppm(4_000)));
        assert_eq!(budget.cost(), OwnCost { share, looking, budget: Ppm(10_000), stretch: 1_000 });
        // 3 % of a core: three steps make 1000 + 29000 / 3.375 = 9592.
        let turns = run(&mut budget, &mut at, &mut spent, 1_000, 29_000, 600);
        assert_eq!(turns, [Turn::Begins, Turn::Changes, Turn::Changes]);
        assert_eq!(budget.stretch(), 3_375);
        let turns = run(&mut budget, &mut at, &mut spent, 1_000, 4_000, 600);
        assert_eq!(turns.last(), Some(&Turn::Ends));
        assert_eq!(budget.stretch(), NONE);
    }

    #[test]
    fn looks_are_never_taken_apart_for_what_they_do_not_cost() {
        // Pods that switch a hundred thousand times a second make the programs run.
        let (mut budget, mut at, mut spent) = fresh();
        assert_eq!(run(&mut budget, &mut at, &mut spent, 50_000, 2_400, 600), []);
        assert_eq!((budget.stretch(), budget.cost().share), (NONE, Some(Ppm(52_400))));
        // Beyond their quarter of the budget looks give way, until they are within it: 8000 / 3.375 = 2370.
        run(&mut budget, &mut at, &mut spent, 50_000, 8_000, 600);
        assert_eq!(budget.stretch(), 3_375);
        // When the rest is cheap again they may have all that it leaves.
        run(&mut budget, &mut at, &mut spent, 1_000, 5_000, 600);
        assert_eq!(budget.stretch(), NONE);
    }

    #[test]
    fn what_cannot_be_helped_stops_at_ten_times() {
        let (mut budget, mut at, mut spent) = fresh();
        run(&mut budget, &mut at, &mut spent, 0, 500_000, 600);
        assert_eq!(budget.stretch(), MOST);
    }

    #[test]
    fn a_cost_around_the_budget_does_not_swing() {
        let (mut budget, mut at, mut spent) = fresh();
        let turns = run(&mut budget, &mut at, &mut spent, 0, 10_500, 3_600);
        assert_eq!(turns, [Turn::Begins]);
    }

    #[test]
    fn a_dear_start_a_burst_and_programs_loaded_anew_are_nothing() {
        let (mut budget, mut at, mut spent) = fresh();
        assert_eq!(run(&mut budget, &mut at, &mut spent, 0, 900_000, 25), []);
        assert_eq!(run(&mut budget, &mut at, &mut spent, 0, 1_000, 60), []);
        assert_eq!(run(&mut budget, &mut at, &mut spent, 0, 90_000, 1), []);
        assert_eq!(run(&mut budget, &mut at, &mut spent, 0, 1_000, 60), []);
        spent = Spent::default();
        assert_eq!(run(&mut budget, &mut at, &mut spent, 0, 1_000, 60), []);
        assert_eq!(budget.stretch(), NONE);
    }

    #[test]
    fn the_budget_grows_with_the_pods() {
        let spent = |second: u64| Spent { all: Micros(second * 5_000), looking: Micros(second * 3_000) };
        let mut budget = Budget::new(PER_100_PODS);
        for second in 0..100 {
            budget.observe(Micros::secs(second), spent(second), 300);
        }
        let (share, looking) = (Some(Ppm(5_000)), Some(Ppm(3_000)));
        assert_eq!(budget.cost(), OwnCost { share, looking, budget: Ppm(30_000), stretch: NONE });
        let mut none = Budget::new(Ppm(0));
        let all = |s| Spent { all: Micros::secs(s), looking: Micros::secs(s) };
        assert!((0..100).all(|s| none.observe(Micros::secs(s), all(s), 1).is_none()));
    }
}
