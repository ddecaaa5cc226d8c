//! Whose a cgroup is.
//!
//! **Approach.** Ids of all cgroups of pods that were seen, with the pod and the runtime's id of the container. Ids of cgroups
//! that are gone stay for a while, for the kernel's events come late.
//!
//! **Properties.** At most [`REMEMBERED`] of them stay. Names stay of containers that are wanted, or whose cgroup is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use beelet_core::spec::PodUid;
use beelet_core::telemetry::Preemptor;

/// So many cgroups that are gone can still be named.
pub(super) const REMEMBERED: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Pod and runtime's id of the container, "" for the pod's own.
    ids: BTreeMap<u64, (PodUid, String)>,
    /// Runtime's id to container name.
    names: BTreeMap<String, String>,
    /// Ids that are gone, oldest first.
    gone: VecDeque<u64>,
    /// Cgroups of pods and of what is in them that were found since somebody last asked, with their paths from the roots of the
    /// hierarchies.
    born: Vec<(u64, PathBuf)>,
}

impl Owners {
    pub(super) fn add(&mut self, id: u64, uid: &PodUid, runtime_id: &str) {
        if self.ids.get(&id).is_none_or(|(u, r)| u != uid || r != runtime_id) {
            self.ids.insert(id, (uid.clone(), runtime_id.to_owned()));
        }
        // It was out of sight, not gone.
        self.gone.retain(|gone| *gone != id);
    }

    pub(super) fn name(&mut self, runtime_id: &str, name: &str) {
        if self.names.get(runtime_id).is_none_or(|known| known != name) {
            self.names.insert(runtime_id.to_owned(), name.to_owned());
        }
    }

    /// Forgets the names of containers that are neither among these nor have a cgroup that is known.
    pub(super) fn keep_names(&mut self, wanted: &BTreeSet<&str>) {
        let known: BTreeSet<&str> = self.ids.values().map(|(_, runtime_id)| runtime_id.as_str()).collect();
        self.names.retain(|id, _| wanted.contains(id.as_str()) || known.contains(id.as_str()));
    }

    pub(super) fn is_born(&mut self, id: u64, path: PathBuf) {
        self.born.push((id, path));
    }

    /// The cgroups of pods, sandboxes and containers that were found since the last call.
    pub(super) fn take_born(&mut self) -> Vec<(u64, PathBuf)> {
        std::mem::take(&mut self.born)
    }

    /// Forgets it in time.
    pub(super) fn is_gone(&mut self, id: u64) {
        self.gone.push_back(id);
        while self.gone.len() > REMEMBERED {
            if let Some(id) = self.gone.pop_front() {
                self.ids.remove(&id);
            }
        }
    }

    /// The cgroups that are there, as far as is known. Those that are gone can be named, but nobody counts for them any more.
    pub(super) fn living(&self) -> BTreeSet<u64> {
        let gone: BTreeSet<u64> = self.gone.iter().copied().collect();
        self.ids.keys().copied().filter(|id| !gone.contains(id)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The pod and the container's name (`None` for a sandbox, or while the name is not known), and whether the name is known.
    pub(super) fn owner(&self, id: u64) -> Option<(PodUid, Option<String>, bool)> {
        let (uid, runtime_id) = self.ids.get(&id)?;
        let name = self.names.get(runtime_id).cloned();
        let known = name.is_some() || runtime_id.is_empty();
        Some((uid.clone(), name, known))
    }

    /// Who a cgroup is that took the CPU from a container (`runtime_id`) of this pod; `None` if the kernel did not tell which.
    pub(super) fn preemptor(&self, id: u64, uid: &PodUid, runtime_id: &str) -> Option<Preemptor> {
        if id == 0 {
            return None;
        }
        Some(match self.ids.get(&id) {
            Some((pod, container)) if pod == uid && container == runtime_id => Preemptor::Own,
            Some((pod, _)) => Preemptor::Pod(pod.clone()),
            None => Preemptor::System,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_took_the_cpu_is_oneself_another_pod_or_the_system() {
        let mut owners = Owners::default();
        let (a, b): (PodUid, PodUid) = ("a".into(), "b".into());
        owners.add(1, &a, "c1");
        owners.add(2, &a, "c2");
        owners.add(3, &b, "c3");
        let told = [0, 1, 2, 3, 4].map(|id| owners.preemptor(id, &a, "c1"));
        let pod = |uid: &PodUid| Some(Preemptor::Pod(uid.clone()));
        assert_eq!(told, [None, Some(Preemptor::Own), pod(&a), pod(&b), Some(Preemptor::System)]);
    }

    #[test]
    fn names_of_runs_that_nobody_saw_go_when_they_are_not_wanted() {
        let mut owners = Owners::default();
        for id in ["seen", "unseen", "wanted"] {
            owners.name(id, "app");
        }
        owners.add(1, &"a".into(), "seen");
        owners.keep_names(&["wanted"].into());
        assert_eq!(owners.names.keys().collect::<Vec<_>>(), ["seen", "wanted"]);
        assert_eq!(owners.owner(1), Some(("a".into(), Some("app".into()), true)));
    }

    #[test]
    fn what_is_gone_can_be_named_and_lives_no_more() {
        let mut owners = Owners::default();
        owners.add(1, &"a".into(), "c1");
        owners.add(2, &"a".into(), "c2");
        owners.is_gone(1);
        assert_eq!(owners.living(), [2].into());
        owners.is_gone(2);
        owners.add(2, &"a".into(), "c2");
        assert_eq!(owners.living(), [2].into(), "it was out of sight only");
        assert!(owners.owner(1).is_some());
    }
}
