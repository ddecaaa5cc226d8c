//! Writes down how pods ended, by when others have to be gone, and what was shown of them, beside the cycle.
//!
//! Problem: a note is on the disk only after an fsync, which takes as long as the disk likes, and the next eviction must not
//! wait for it. Approach: one thread does what it is told in the order in which it is told.
//!
//! Property: [`Notes::stop`] returns when all that was told is done.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use beelet_core::event::Terminal;
use beelet_core::spec::PodUid;
use beelet_core::status::PodNote;
use beelet_core::units::Micros;
use tracing::{error, warn};

use crate::act::{GoingStore, StatusStore, TerminalStore};

#[derive(Debug)]
pub(super) enum Note {
    Remember(Terminal),
    Forget(PodUid),
    /// By when a pod has to be gone (wall clock); `None` to forget it.
    Going(PodUid, Option<Micros>),
    Shown(PodNote),
}

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Notes {
    to: Sender<Note>,
    thread: JoinHandle<()>,
}

impl Notes {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn spawn(store: TerminalStore, going: GoingStore, shown: StatusStore) -> std::io::Result<Self> {
        let (to, notes) = channel();
        let thread = std::thread::Builder::new()
            .name("beelet-notes".to_owned())
            .spawn(move || write(&store, &going, &shown, &notes))?;
        Ok(Self { to, thread })
    }

    /// Has something written down, or a note removed.
    pub(super) fn take(&self, note: Note) {
        if let Err(unsent) = self.to.send(note) {
            error!(note = ?unsent.0, "nobody writes down how pods ended any more; a restarted agent will run them again");
        }
    }

    /// Waits until all is written.
    pub(super) fn stop(self) {
        drop(self.to);
        if self.thread.join().is_err() {
            error!("writing down how pods ended broke off; a restarted agent may run some of them again");
        }
    }
}

fn write(store: &TerminalStore, going: &GoingStore, shown: &StatusStore, notes: &Receiver<Note>) {
    for note in notes {
        match note {
            Note::Remember(end) => {
                if let Err(error) = store.remember(&end) {
                    error!(%error, pod = %end.uid, "how a pod ended cannot be written down; a restarted agent will run it again");
                }
            }
            Note::Going(uid, until) => {
                if let Err(error) = going.note(&uid, until) {
                    warn!(%error, pod = %uid, "by when a pod has to be gone cannot be written down; a restarted agent may give it its time again");
                }
            }
            Note::Shown(note) => {
                if let Err(error) = shown.remember(&note) {
                    warn!(%error, pod = %note.uid, "what is shown of a pod cannot be written down; a restarted agent may show changes that are none");
                }
            }
            Note::Forget(uid) => {
                for error in [store.forget(&uid), shown.forget(&uid)].into_iter().filter_map(Result::err) {
                    warn!(%error, pod = %uid, "the note of a pod cannot be removed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beelet_core::snapshot::Phase;

    fn end(uid: &str) -> Terminal {
        Terminal {
            uid: uid.into(),
            phase: Phase::Failed,
            reason: "Evicted".to_owned(),
            disruption: Some("m".to_owned()),
            message: String::new(),
            exits: Vec::new(),
        }
    }

    fn note(uid: &str, since: u64) -> PodNote {
        PodNote { uid: uid.into(), since: Micros(since), conditions: Vec::new(), runs: Vec::new() }
    }

    #[test]
    fn all_that_was_told_is_done_in_order_before_the_end() {
        let root = tempfile::tempdir().unwrap();
        let store = TerminalStore::open(root.path()).unwrap();
        let going = GoingStore::open(root.path()).unwrap();
        let shown = StatusStore::open(root.path()).unwrap();
        let notes = Notes::spawn(store.clone(), going.clone(), shown.clone()).unwrap();
        notes.take(Note::Going("goes".into(), Some(Micros(7))));
        for n in 0..20 {
            notes.take(Note::Remember(end(&format!("pod-{n}"))));
            notes.take(Note::Shown(note(&format!("pod-{n}"), 1)));
            notes.take(Note::Shown(note(&format!("pod-{n}"), 2)));
        }
        notes.take(Note::Forget("pod-3".into()));
        notes.stop();
        let (left, _) = store.load().unwrap();
        assert_eq!((left.len(), going.load().unwrap().0), (19, vec![("goes".into(), Micros(7))]));
        assert!(left.iter().all(|end| end.uid.as_str() != "pod-3"));
        let (left, bad) = shown.load().unwrap();
        assert_eq!((left.len(), bad), (19, Vec::new()));
        assert!(left.iter().all(|note| note.uid.as_str() != "pod-3" && note.since == Micros(2)), "the newest counts");
    }
}
