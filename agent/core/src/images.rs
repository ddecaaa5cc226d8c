//! Which images may go.
//!
//! Problem: images that nobody uses fill the disk, and one that was pulled a moment ago is about to be used. Approach: the kubelet's
//! (pkg/kubelet/images/image_gc_manager.go, release 1.36): each image has a moment at which it was first seen and one at which it was
//! last used; those that nobody uses and the runtime does not pin may go, the longest unused first; not before they are
//! [`Policy::min_age`] old; those unused for longer than [`Policy::max_age`] go whatever the room; and if more than
//! [`Policy::high`] of the file system is used, so many go that [`Policy::low`] would be.
//!
//! Terms: an image is *used* by each container that was made from it, running or dead, and by what is wanted and has no container yet.
//!
//! Properties (tested): a used or pinned image never goes; nor does one younger than the minimum age, but for its age; what goes is
//! just enough; the order does not depend on the input's.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::evict::disk::FsRoom;
use crate::units::{Bytes, Micros};

/// An image of the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its tags and digests.
    pub names: Vec<String>,
    /// What it takes.
    pub size: Bytes,
    /// The runtime says that it stays.
    pub pinned: bool,
}

/// When images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `imageGCHighThresholdPercent`: at so much use of the file system images begin to go; 100 switches it off.
    pub high: u8,
    /// `imageGCLowThresholdPercent`: and go until it would be at that.
    pub low: u8,
    /// `imageMinimumGCAge`: a younger one stays.
    pub min_age: Micros,
    /// `imageMaximumGCAge`: one that was not used for longer goes; zero for never.
    pub max_age: Micros,
}

impl Default for Policy {
    fn default() -> Self {
        Self { high: 85, low: 80, min_age: Micros::secs(120), max_age: Micros::ZERO }
    }
}

/// Why an image goes: the `reason` of `kubelet_image_garbage_collected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It was not used for too long.
    Age,
    /// The file system is too full.
    Space,
}

impl Reason {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Space => "space",
        }
    }
}

#[derive(Clone, Debug)]
struct Record {
    detected: Micros,
    /// Zero for never.
    last_used: Micros,
    used: bool,
    size: Bytes,
    pinned: bool,
}

/// What is remembered of images.
#[derive(Clone, Debug, Default)]
pub struct Images {
    records: BTreeMap<String, Record>,
}

impl Images {
    /// Takes a listing of all images, and what is used: ids and names, as containers and pods name them. `now` is monotonic.
    pub fn observe(&mut self, images: &[Image], used: &BTreeSet<String>, now: Micros) {
        let mut before = std::mem::take(&mut self.records);
        for image in images {
            let is_used = used.contains(&image.id) || image.names.iter().any(|name| used.contains(name));
            let known = before.remove(&image.id);
            let (detected, last_used) = known.map_or((now, Micros::ZERO), |r| (r.detected, r.last_used));
            let last_used = if is_used { now } else { last_used };
            let record = Record { detected, last_used, used: is_used, size: image.size, pinned: image.pinned };
            self.records.insert(image.id.clone(), record);
        }
    }

    /// Those that nobody uses, the longest unused first, then the longest known.
    fn unused(&self) -> Vec<(&String, &Record)> {
        let mut order: Vec<_> = self.records.iter().filter(|(_, r)| !r.used && !r.pinned).collect();
        order.sort_by_key(|(id, r)| (r.last_used, r.detected, *id));
        order
    }

    fn old_enough(record: &Record, policy: &Policy, now: Micros) -> bool {
        now - record.detected >= policy.min_age
    }

    /// All that may go, in order, with their sizes: for a node that is short of disk (`DeleteUnusedImages`).
    #[must_use]
    pub fn all_unused(&self, policy: &Policy, now: Micros) -> Vec<(String, Bytes)> {
        let order = self.unused().into_iter().filter(|(_, r)| Self::old_enough(r, policy, now));
        order.map(|(id, r)| (id.clone(), r.size)).collect()
    }

    /// What is to go now (`GarbageCollect`), in order. `began` is when images were first looked at: age counts from then.
    #[must_use]
    pub fn collect(
        &self,
        policy: &Policy,
        room: Option<FsRoom>,
        began: Micros,
        now: Micros,
    ) -> Vec<(String, Bytes, Reason)> {
        let unused = self.unused();
        let ages = policy.max_age > Micros::ZERO && now - began > policy.max_age;
        let too_old = |r: &Record| ages && now - r.last_used.max(r.detected) > policy.max_age;
        let mut go: Vec<_> =
            unused.iter().filter(|(_, r)| too_old(r)).map(|(id, r)| ((*id).clone(), r.size, Reason::Age)).collect();
        let mut missing = room.map_or(0, |room| to_free(policy, room));
        for (id, record) in unused.into_iter().filter(|(_, r)| !too_old(r) && Self::old_enough(r, policy, now)) {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(record.size.get());
            go.push((id.clone(), record.size, Reason::Space));
        }
        go
    }
}

/// Bytes to be freed for the low threshold; 0 while the high one is not reached.
#[must_use]
pub fn to_free(policy: &Policy, room: FsRoom) -> u64 {
    let (capacity, available) = (u128::from(room.capacity.get()), u128::from(room.available.get()));
    if capacity == 0 || policy.high >= 100 {
        return 0;
    }
    let used = 100 - (available.min(capacity) * 100 / capacity);
    if used < u128::from(policy.high) {
        return 0;
    }
    let wanted = capacity * u128::from(100 - policy.low.min(100)) / 100;
    u64::try_from(wanted.saturating_sub(available)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(id: &str, mib: u64) -> Image {
        Image { id: id.to_owned(), names: vec![format!("r/{id}:1")], size: Bytes::mib(mib), pinned: id == "pause" }
    }

    fn used(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn full(percent: u64) -> Option<FsRoom> {
        let capacity = Bytes::mib(1_000);
        Some(FsRoom { capacity, available: Bytes::mib(10 * (100 - percent)), ..FsRoom::default() })
    }

    fn ids<T>(list: &[(String, Bytes, T)]) -> Vec<&str> {
        list.iter().map(|(id, ..)| id.as_str()).collect()
    }

    #[test]
    fn a6_5a_the_longest_unused_go_until_the_low_threshold() {
        let all = [image("a", 30), image("b", 30), image("c", 30), image("d", 30), image("pause", 1)];
        let mut images = Images::default();
        images.observe(&all, &used(&["a", "r/b:1", "d"]), Micros::secs(1));
        images.observe(&all, &used(&["a"]), Micros::secs(100));
        images.observe(&all, &used(&["d"]), Micros::secs(1_000));
        let policy = Policy::default();
        let go = |room, now| images.collect(&policy, room, Micros::ZERO, Micros::secs(now));
        // 86 % used: 60 MiB to 80 %; c was never used, b before a, d is in use, pause is pinned.
        assert_eq!(ids(&go(full(86), 1_000)), ["c", "b"]);
        assert_eq!(ids(&go(full(84), 1_000)), [""; 0], "below the high threshold");
        assert_eq!(ids(&go(full(99), 1_000)), ["c", "b", "a"], "not enough, but what there is");
        assert_eq!(ids(&go(None, 1_000)), [""; 0], "a room that is not known frees nothing");
        let all: Vec<_> = images.all_unused(&policy, Micros::secs(1_000)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(all, ["c", "b", "a"]);
    }

    #[test]
    fn a6_5a_the_young_stay_and_the_old_go() {
        let mut images = Images::default();
        images.observe(&[image("old", 30)], &used(&[]), Micros::secs(0));
        images.observe(&[image("old", 30), image("new", 30)], &used(&[]), Micros::secs(1_000));
        let policy = Policy { max_age: Micros::secs(900), ..Policy::default() };
        let go = |room, began, now| images.collect(&policy, room, Micros::secs(began), Micros::secs(now));
        assert_eq!(ids(&go(full(99), 0, 1_119)), ["old"]);
        assert_eq!(ids(&go(full(99), 0, 1_120)), ["old", "new"]);
        assert_eq!(go(full(10), 0, 1_100)[0].2, Reason::Age);
        assert_eq!(ids(&go(full(10), 500, 1_100)), [""; 0], "age counts from the first look");
    }

    #[test]
    fn what_is_freed_is_what_is_missing() {
        for (percent, mib) in [(84, 0), (85, 50), (90, 100), (100, 200)] {
            assert_eq!(
                to_free(&Policy::default(), full(percent).unwrap_or_default()),
                Bytes::mib(mib).get(),
                "{percent}"
            );
        }
        assert_eq!(to_free(&Policy::default(), FsRoom::default()), 0);
        assert_eq!(
            to_free(&Policy { high: 100, ..Policy::default() }, full(100).unwrap_or_default()),
            0,
            "switched off"
        );
        assert_eq!(
            to_free(&Policy { high: 0, low: 0, ..Policy::default() }, full(1).unwrap_or_default()),
            Bytes::mib(10).get()
        );
    }

    proptest! {
        #[test]
        fn a6_5a_neither_a_used_nor_a_pinned_nor_a_young_image_goes_for_space(
            looks in proptest::collection::vec((1_u64..400, proptest::collection::vec(any::<bool>(), 6)), 1..6),
            percent in 0_u64..=100,
        ) {
            let all: Vec<Image> = ["a", "b", "c", "d", "e", "pause"].iter().map(|id| image(id, 17)).collect();
            let (mut images, mut now, policy) = (Images::default(), 0, Policy::default());
            let mut last = BTreeSet::new();
            for (after, uses) in &looks {
                now += after;
                last = all.iter().zip(uses).filter(|(_, used)| **used).map(|(image, _)| image.id.clone()).collect();
                images.observe(&all, &last, Micros::secs(now));
            }
            let go = images.collect(&policy, full(percent), Micros::ZERO, Micros::secs(now));
            let young = now - looks[0].0 < 120;
            prop_assert!(go.iter().all(|(id, ..)| !last.contains(id) && id != "pause" && !young), "{go:?}");
            let enough = to_free(&policy, full(percent).unwrap_or_default());
            let before_last: u64 = go.iter().rev().skip(1).map(|(_, size, _)| size.get()).sum();
            prop_assert!(go.is_empty() || before_last < enough, "one too many");
        }
    }
}
