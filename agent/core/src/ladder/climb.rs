//! Who is put on which rung, and when he is taken off.

use std::collections::BTreeMap;

use super::{Act, Move, Rung, Rungs, Turn, Wishes};
use crate::allocate::lowest_limit;
use crate::forecast::{Forecast, MAX_INTERVAL, MIN_INTERVAL, REACTION};
use crate::sample::MemoryReading;
use crate::spec::PodUid;
use crate::units::{Bytes, Micros, Ppm};

/// The longest that a pod's page cache is reclaimed in one go.
pub const RECLAIM_LIMIT: Micros = Micros::secs(60);
/// The longest that a pod is throttled.
pub const THROTTLE_LIMIT: Micros = Micros::secs(30);
/// The longest that a limit is raised further and further.
pub const RAISE_LIMIT: Micros = Micros::secs(600);
/// The longest that a pod is frozen.
pub const FREEZE_LIMIT: Micros = Micros::secs(2);
/// After its time is over a pod rests from reclaim and throttle for so long, and from freezing for half of it.
const REST: Micros = Micros::secs(60);
/// What has to be over is over when it was not seen for so long.
const CALM: Micros = Micros::secs(5);

/// Reclaim: less than this share is left, or the wall is so near in time.
const SHORT: Ppm = Ppm(150_000);
const RECLAIM_HORIZON: Micros = Micros::secs(600);
/// One portion of reclaim, each so often.
const RECLAIM_EVERY: Micros = Micros::secs(1);
const RECLAIM_MOST: Bytes = Bytes::mib(32);
/// Less cache than this is not worth it.
const RECLAIM_LEAST: Bytes = Bytes::mib(8);
/// Tasks of the pod may wait for memory this share of the time, and of what is reclaimed as much may come back.
const RECLAIM_STALL: Ppm = Ppm(10_000);

const THROTTLE_HORIZON: Micros = Micros::secs(60);
/// The least room between usage and `memory.high`.
const THROTTLE_ROOM: Bytes = Bytes::mib(4);
/// Who grows by less is no aggressor, whatever the others do.
const THROTTLE_GROWTH: u64 = 1 << 20;
/// `full` of the last 10 s, in hundredths of a percent: nothing of the pod gets on.
const STRANGLED: u32 = 4_000;

const RAISE_HORIZON: Micros = Micros::secs(10);
const RAISE_LEAST: Bytes = Bytes::mib(100);
/// What was written can be read after so long.
const WRITTEN: Micros = Micros::secs(1);
/// A raised limit comes back when it was not needed for so long.
const RAISE_HOLD: Micros = Micros::secs(30);

/// A step of less than this is noise of per-CPU counters, as in [`crate::forecast`].
const NOISE: Bytes = Bytes(64 << 10);

/// How the walls that pods share stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// The least that is left below a shared wall, as a share of it.
    pub left: Option<Ppm>,
    /// When the nearest shared wall is hit at confirmed growth.
    pub time_to_oom: Option<Micros>,
    /// That growth, bytes per second; 0 for none.
    pub slope: u64,
    /// What could be taken below every shared wall without coming near a threshold: what is left less twice the threshold.
    pub room: Bytes,
    /// A hard threshold is met.
    pub met: bool,
    /// A victim was decided on just now, or is awaited.
    pub decided: bool,
}

/// A container of a [`Subject`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// Its memory.
    pub memory: MemoryReading,
    /// When that was read (monotonic): what nothing ran in keeps its reading for a while.
    pub at: Micros,
    /// The limit that it was given.
    pub given: Option<Bytes>,
    /// When it hits its own limit.
    pub forecast: Option<Forecast>,
}

/// A pod with what the ladder has to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which pod.
    pub uid: PodUid,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// What it wants.
    pub wishes: Wishes,
    /// It is not on its way out.
    pub live: bool,
    /// Its place in the order of victims, 0 for the first; `None` for one that may not go.
    pub place: Option<usize>,
    /// It holds more than it asks for.
    pub exceeds: bool,
    /// Its memory.
    pub memory: MemoryReading,
    /// The limit that it was given as a whole.
    pub given: Option<Bytes>,
    /// Growth of what reclaim cannot free, bytes per second.
    pub growth: Option<i64>,
    /// The share of time in which some task waited for memory since the last look.
    pub stalled: Option<Ppm>,
    /// The share of the last 10 s in which none of its tasks got on for want of memory, hundredths of a percent.
    pub strangled: u32,
    /// Its containers.
    pub containers: Vec<Held>,
}

impl Subject {
    fn grows(&self) -> u64 {
        self.growth.and_then(|growth| u64::try_from(growth).ok()).unwrap_or(0)
    }

    fn cache(&self) -> Bytes {
        self.memory.usage - self.memory.unreclaimable()
    }
}

/// A rung that a pod is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct On {
    since: Micros,
    /// When its reason was last seen.
    needed: Micros,
    /// When it last did something.
    last: Micros,
    /// `refaults_file` then, and what it did: the bytes to reclaim, or the bound.
    refaults: Option<u64>,
    asked: Bytes,
}

impl On {
    fn new(now: Micros) -> Self {
        Self { since: now, needed: now, last: now, refaults: None, asked: Bytes::ZERO }
    }
}

/// A container's raised limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raised {
    since: Micros,
    last: Micros,
    before: Bytes,
    now: Bytes,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    on: BTreeMap<Rung, On>,
    raised: BTreeMap<String, Raised>,
    rests: BTreeMap<Rung, Micros>,
    /// What it held at the last look.
    held: Option<Bytes>,
    /// The same of its containers, with when that was.
    containers: BTreeMap<String, (Micros, Bytes)>,
}

impl Standing {
    fn may(&self, rung: Rung, now: Micros) -> bool {
        self.rests.get(&rung).is_none_or(|until| now >= *until)
    }

    /// The pod's own limit as it should be.
    fn pod_max(&self, pod: &Subject) -> Option<(String, Act)> {
        let more: Bytes = self.raised.values().map(|r| r.now - r.before).sum();
        pod.given.map(|limit| (pod.cgroup.clone(), Act::Max(limit + more)))
    }

    /// What was given by raising limits and is not used yet.
    fn unfilled(&self, pod: &Subject) -> Bytes {
        let held = |name: &str| pod.containers.iter().find(|c| c.name == name).map(|c| c.memory.unreclaimable());
        self.raised.iter().map(|(name, r)| r.now - r.before.max(held(name).unwrap_or_default())).sum()
    }

    fn is_on(&self, rung: Rung) -> bool {
        self.on.contains_key(&rung) || rung == Rung::Raise && !self.raised.is_empty()
    }
}

/// The ladder of a node. [`Ladder::step`] takes every look at all pods, in order.
#[derive(Clone, Debug)]
pub struct Ladder {
    rungs: Rungs,
    pods: BTreeMap<PodUid, Standing>,
    interval: Micros,
}

/// One step: what it writes its moves into.
struct Step<'a> {
    now: Micros,
    at: &'a Situation,
    subject: &'a Subject,
    /// What may still be given by raising limits.
    room: &'a mut Bytes,
    moves: &'a mut Vec<Move>,
}

impl Ladder {
    /// A ladder that nobody is on.
    #[must_use]
    pub fn new(rungs: Rungs) -> Self {
        Self { rungs, pods: BTreeMap::new(), interval: MAX_INTERVAL }
    }

    /// How soon a container that may be raised wants the next look at all pods; [`MAX_INTERVAL`] if none does.
    #[must_use]
    pub fn interval(&self) -> Micros {
        self.interval
    }

    /// The rungs that a pod is on, the mildest first.
    #[must_use]
    pub fn rungs_of(&self, uid: &PodUid) -> Vec<Rung> {
        let on = |standing: &Standing| Rung::ALL.into_iter().filter(|rung| standing.is_on(*rung)).collect();
        self.pods.get(uid).map(on).unwrap_or_default()
    }

    /// How much is remembered.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pods.len()
    }

    /// Whether some pod is slowed down.
    #[must_use]
    pub fn throttles(&self) -> bool {
        self.pods.values().any(|standing| standing.on.contains_key(&Rung::Throttle))
    }

    /// A pod is gone; so is its cgroup, with all that was done to it.
    pub fn forget(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }

    /// What is to be done after a look at all pods at `now` (monotonic). A pod that could not be read stays where it is.
    pub fn step(&mut self, now: Micros, at: &Situation, subjects: &[Subject]) -> Vec<Move> {
        let mut moves = Vec::new();
        let unfilled = |s: &Subject| self.pods.get(&s.uid).map(|standing| standing.unfilled(s)).unwrap_or_default();
        let mut room = at.room - subjects.iter().map(unfilled).sum();
        self.interval = MAX_INTERVAL;
        for subject in subjects {
            let mut standing = self.pods.remove(&subject.uid).unwrap_or_default();
            let mut step = Step { now, at, subject, room: &mut room, moves: &mut moves };
            if subject.live {
                let permits = |rung| self.rungs.permits(rung, &subject.wishes);
                step.reclaim(&mut standing, permits(Rung::Reclaim));
                step.throttle(&mut standing, permits(Rung::Throttle));
                let soon = step.raise(&mut standing, permits(Rung::Raise));
                self.interval = self.interval.min(soon);
                step.freeze(&mut standing, permits(Rung::Freeze));
            } else {
                step.release(&mut standing);
            }
            standing.held = Some(subject.memory.unreclaimable());
            self.pods.insert(subject.uid.clone(), standing);
        }
        moves
    }
}

impl Step<'_> {
    fn push(&mut self, rung: Rung, turn: Turn, acts: Vec<(String, Act)>, why: String) {
        let it = self.subject;
        let growth = it.growth.map_or_else(|| "unknown".to_owned(), |growth| format!("{growth} B/s"));
        let evidence = [
            ("rung", rung.to_string()),
            ("usage", it.memory.usage.to_string()),
            ("unreclaimable", it.memory.unreclaimable().to_string()),
            ("growth", growth),
            ("time_to_oom", self.at.time_to_oom.map_or_else(|| "none".to_owned(), |left| left.to_string())),
            ("room", self.at.room.to_string()),
        ];
        let evidence = evidence.map(|(name, value)| (name.to_owned(), value)).into();
        self.moves.push(Move { uid: it.uid.clone(), container: None, rung, turn, acts, why, evidence });
    }

    fn pod(&self, act: Act) -> Vec<(String, Act)> {
        vec![(self.subject.cgroup.clone(), act)]
    }

    /// Takes the pod off a rung; with `rest` it stays off it for that long.
    fn leave(&mut self, standing: &mut Standing, rung: Rung, rest: Micros, why: String) {
        standing.on.remove(&rung);
        if rest > Micros::ZERO {
            standing.rests.insert(rung, self.now + rest);
        }
        let acts = match rung {
            Rung::Throttle => self.pod(Act::High(None)),
            Rung::Freeze => self.pod(Act::Freeze(false)),
            Rung::Reclaim | Rung::Raise | Rung::Leave => Vec::new(),
        };
        self.push(rung, Turn::Leave, acts, why);
    }

    /// The pod is going: nothing may hold it up. Its limits go with it.
    fn release(&mut self, standing: &mut Standing) {
        standing.raised.clear();
        for rung in standing.on.keys().copied().collect::<Vec<_>>() {
            self.leave(standing, rung, Micros::ZERO, "the pod is going".to_owned());
        }
    }

    fn reclaim(&mut self, standing: &mut Standing, permitted: bool) {
        let (now, it) = (self.now, self.subject);
        let short = self.at.left.is_some_and(|left| left < SHORT);
        let soon = self.at.time_to_oom.is_some_and(|left| left < RECLAIM_HORIZON);
        let wanted = permitted && (short || soon) && it.exceeds && it.cache() >= RECLAIM_LEAST;
        let portion = || Bytes(it.memory.usage.get() / 100).clamp(Bytes::mib(1), RECLAIM_MOST).min(it.cache());
        let Some(mut on) = standing.on.get(&Rung::Reclaim).copied() else {
            if wanted && standing.may(Rung::Reclaim, now) {
                let bytes = portion();
                let on = On { refaults: it.memory.more.refaults_file, asked: bytes, ..On::new(now) };
                standing.on.insert(Rung::Reclaim, on);
                let left = self.at.left.map_or_else(String::new, |left| format!("{} % is left", left.get() / 10_000));
                let why = format!("{left}, and the pod holds more than it asks for: its page cache is freed slowly");
                self.push(Rung::Reclaim, Turn::Enter, self.pod(Act::Reclaim(bytes)), why);
            }
            return;
        };
        let came_back =
            it.memory.more.refaults_file.zip(on.refaults).map_or(0, |(after, before)| after.saturating_sub(before));
        // Pages of 4 KiB; one in a hundred of those that were asked for.
        let thrashes = came_back.saturating_mul(4_096) > on.asked.get() / 100;
        if it.stalled.is_some_and(|stalled| stalled > RECLAIM_STALL) {
            self.leave(standing, Rung::Reclaim, REST, "tasks of the pod wait for memory".to_owned());
        } else if thrashes {
            self.leave(standing, Rung::Reclaim, REST, format!("{came_back} pages came back: it needs its cache"));
        } else if now - on.since >= RECLAIM_LIMIT {
            self.leave(standing, Rung::Reclaim, REST, format!("the rung's {RECLAIM_LIMIT} are over"));
        } else if !permitted || now - on.needed >= CALM {
            self.leave(standing, Rung::Reclaim, Micros::ZERO, "there is nothing to reclaim for any more".to_owned());
        } else if wanted {
            on.needed = now;
            if now - on.last >= RECLAIM_EVERY {
                let bytes = portion();
                on = On { last: now, refaults: it.memory.more.refaults_file, asked: bytes, ..on };
                self.push(Rung::Reclaim, Turn::Again, self.pod(Act::Reclaim(bytes)), String::new());
            }
            standing.on.insert(Rung::Reclaim, on);
        }
    }

    fn throttle(&mut self, standing: &mut Standing, permitted: bool) {
        let (now, it) = (self.now, self.subject);
        let soon = self.at.time_to_oom.is_some_and(|left| left <= THROTTLE_HORIZON);
        // The aggressor: above its request, may go, and at least half of what the wall comes nearer by is his.
        let most = it.grows() >= (self.at.slope / 2).max(THROTTLE_GROWTH);
        let aggressor = it.exceeds && it.place.is_some() && most;
        let wanted = permitted && soon && aggressor;
        let Some(on) = standing.on.get_mut(&Rung::Throttle) else {
            // A bound that somebody else has set is theirs.
            if wanted && it.memory.more.high.is_none() && standing.may(Rung::Throttle, now) {
                let soon = Bytes(it.grows()).scale(REACTION.get(), 1_000_000);
                let high = it.memory.usage + soon.max(THROTTLE_ROOM);
                standing.on.insert(Rung::Throttle, On { asked: high, ..On::new(now) });
                let left = self.at.time_to_oom.unwrap_or_default();
                let grows = Bytes(it.grows());
                let why = format!(
                    "memory that all pods share runs out in {left}, and this pod, above its request, grows by {grows} per second: \
                     it is slowed down above {high}, for {THROTTLE_LIMIT} at most"
                );
                self.push(Rung::Throttle, Turn::Enter, self.pod(Act::High(Some(high))), why);
            }
            return;
        };
        // One that is held up at the bound does not grow because of it.
        if wanted || it.memory.usage + THROTTLE_ROOM >= on.asked {
            on.needed = now;
        }
        let (since, needed) = (on.since, on.needed);
        if now - since >= THROTTLE_LIMIT {
            self.leave(standing, Rung::Throttle, REST, format!("the rung's {THROTTLE_LIMIT} are over"));
        } else if it.strangled >= STRANGLED {
            let share = it.strangled / 100;
            self.leave(standing, Rung::Throttle, REST, format!("nothing of the pod got on for {share} % of 10 s"));
        } else if !permitted || now - needed >= CALM {
            self.leave(standing, Rung::Throttle, Micros::ZERO, "its growth has ended".to_owned());
        }
    }

    /// Raises limits and takes them back; how soon the next look at all pods is wanted.
    fn raise(&mut self, standing: &mut Standing, permitted: bool) -> Micros {
        let mut soon = MAX_INTERVAL;
        for container in &self.subject.containers {
            if let Some(raised) = standing.raised.get(&container.name).copied() {
                self.restore(standing, container, raised);
            }
            let held = container.memory.unreclaimable();
            let before = standing.containers.insert(container.name.clone(), (self.now, held));
            let (true, Some(limit), Some(given)) = (permitted, container.memory.limit, container.given) else {
                continue;
            };
            let raised = standing.raised.get(&container.name);
            let written = raised.is_none_or(|r| is(Some(limit), r.now));
            let over = raised.is_some_and(|r| self.now - r.since >= RAISE_LIMIT);
            let extra = Bytes(limit.get() / 5).max(RAISE_LEAST).min(given + given - limit);
            if over || !written || extra < NOISE || extra > *self.room || !standing.may(Rung::Raise, self.now) {
                continue;
            }
            if let Some((at, before)) = before.filter(|(_, before)| held > *before + NOISE) {
                let lasts = Micros((limit - held).scale((self.now - at).get(), (held - before).get()).get());
                soon = soon.min(Micros(lasts.get() / 4).max(MIN_INTERVAL));
            }
            if container.forecast.is_some_and(|forecast| forecast.time_to_oom <= RAISE_HORIZON) {
                *self.room = *self.room - extra;
                self.raise_one(standing, container, (given, limit), extra);
            }
        }
        let is_there = |name: &String| self.subject.containers.iter().any(|c| c.name == *name);
        standing.containers.retain(|name, _| is_there(name));
        let ended: Vec<String> = standing.raised.keys().filter(|name| !is_there(name)).cloned().collect();
        for name in ended {
            let acts = self.forget_raised(standing, &name);
            self.push(Rung::Raise, Turn::Leave, acts, format!("container {name} has ended"));
        }
        soon
    }

    fn raise_one(&mut self, standing: &mut Standing, container: &Held, limits: (Bytes, Bytes), extra: Bytes) {
        let (given, limit) = limits;
        let now = limit + extra;
        let entry = Raised { since: self.now, last: self.now, before: given, now };
        let raised = standing.raised.entry(container.name.clone()).or_insert(entry);
        let turn = if *raised == entry { Turn::Enter } else { Turn::Again };
        (raised.last, raised.now) = (self.now, now);
        let pod = standing.pod_max(self.subject);
        let acts = pod.into_iter().chain([(container.cgroup.clone(), Act::Max(now))]).collect();
        let left = container.forecast.map_or(Micros::ZERO, |forecast| forecast.time_to_oom);
        let why = format!("it hits its limit of {limit} in {left}, and the node has room: the limit is {now} for now");
        self.push(Rung::Raise, turn, acts, why);
        self.name(container);
    }

    /// Takes a raised limit back when it is not needed, and forgets it when it is somebody else's now.
    fn restore(&mut self, standing: &mut Standing, container: &Held, raised: Raised) {
        // A resize gave it another limit: that one counts.
        if !is(container.memory.limit, raised.now) || !is(container.given, raised.before) {
            if container.at >= raised.last + WRITTEN {
                self.forget(standing, container, raised);
            }
            return;
        }
        let fits = lowest_limit(&container.memory) <= raised.before;
        let grows = container.forecast.is_some_and(|forecast| forecast.time_to_oom <= THROTTLE_HORIZON);
        if !fits || grows || self.now - raised.last < RAISE_HOLD {
            return;
        }
        standing.raised.remove(&container.name);
        let own = (container.cgroup.clone(), Act::Max(raised.before));
        let acts = [own].into_iter().chain(standing.pod_max(self.subject)).collect();
        self.push(Rung::Raise, Turn::Leave, acts, format!("it needs no more than its limit of {}", raised.before));
        self.name(container);
    }

    /// The limit is not what was written: it could not be, or somebody else wrote it since.
    fn forget(&mut self, standing: &mut Standing, container: &Held, raised: Raised) {
        let acts = self.forget_raised(standing, &container.name);
        standing.rests.insert(Rung::Raise, self.now + REST);
        let now = container.memory.limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        let why = format!("its limit is {now} and not {}, which beelet wrote", raised.now);
        self.push(Rung::Raise, Turn::Leave, acts, why);
        self.name(container);
    }

    /// Forgets a container's raised limit; what is to be done to the pod's own, which may be somebody else's by now.
    fn forget_raised(&self, standing: &mut Standing, name: &str) -> Vec<(String, Act)> {
        let pod = standing.pod_max(self.subject);
        standing.raised.remove(name);
        let ours = pod.is_some_and(|(_, act)| matches!(act, Act::Max(max) if is(self.subject.memory.limit, max)));
        standing.pod_max(self.subject).filter(|_| ours).into_iter().collect()
    }

    /// The last move is about this container.
    fn name(&mut self, container: &Held) {
        if let Some(last) = self.moves.last_mut() {
            last.container = Some(container.name.clone());
            last.evidence.push(("container_unreclaimable".to_owned(), container.memory.unreclaimable().to_string()));
        }
    }

    fn freeze(&mut self, standing: &mut Standing, permitted: bool) {
        let (now, it) = (self.now, self.subject);
        let Some(on) = standing.on.get(&Rung::Freeze).copied() else {
            let held = it.memory.unreclaimable();
            let grew = standing.held.is_some_and(|before| held > before + NOISE);
            let race = self.at.met && !self.at.decided && it.place == Some(0) && it.exceeds && grew;
            if permitted && race && standing.may(Rung::Freeze, now) {
                standing.on.insert(Rung::Freeze, On::new(now));
                let why = "a hard threshold is met, and this pod, the first that would go, still grows: it stands still until \
                           that is decided"
                    .to_owned();
                self.push(Rung::Freeze, Turn::Enter, self.pod(Act::Freeze(true)), why);
            }
            return;
        };
        if now - on.since >= FREEZE_LIMIT {
            self.leave(standing, Rung::Freeze, Micros(REST.get() / 2), format!("the rung's {FREEZE_LIMIT} are over"));
        } else if !self.at.met || self.at.decided || !permitted {
            let decided = self.at.decided;
            let why = if decided { "it is decided who goes" } else { "the threshold is not met any more" };
            // What goes to and fro about the threshold must not make it stand still again and again.
            let rest = if decided { Micros::ZERO } else { Micros(REST.get() / 2) };
            self.leave(standing, Rung::Freeze, rest, why.to_owned());
        }
    }
}

/// Whether a limit is this one; the kernel keeps whole pages.
fn is(limit: Option<Bytes>, this: Bytes) -> bool {
    limit.is_some_and(|limit| (limit - this) + (this - limit) <= NOISE)
}
