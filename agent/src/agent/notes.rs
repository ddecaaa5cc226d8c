//! Writes down how pods ended, and by when others have to be gone, beside the cycle.
//!
//! Problem: a note is on the disk only after an fsync, which takes as long as the disk likes, and the next eviction must not
//! wait for it. Approach: one thread does what it is told in the order in which it is told.
//!
//! Property: [`Notes::stop`] returns when all that was told is done.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use beelet_core::event::Terminal;
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use tracing::{error, warn};

use crate::act::{GoingStore, TerminalStore};

#[derive(Debug)]
pub(super) enum Note {
    Remember(Terminal),
    Forget(PodUid),
    /// By when a pod has to be gone (wall clock); `None` to forget it.
    Going(PodUid, Option<Micros>),
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
    pub(super) fn spawn(store: TerminalStore, going: GoingStore) -> std::io::Result<Self> {
        let (to, notes) = channel();
        let thread =
            std::thread::Builder::new().name("beelet-notes".to_owned()).spawn(move || write(&store, &going, &notes))?;
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

fn write(store: &TerminalStore, going: &GoingStore, notes: &Receiver<Note>) {
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
            Note::Forget(uid) => {
                if let Err(error) = store.forget(&uid) {
                    warn!(%error, pod = %uid, "the note of a pod's end cannot be removed");
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

    #[test]
    fn all_that_was_told_is_done_in_order_before_the_end() {
        let root = tempfile::tempdir().unwrap();
        let store = TerminalStore::open(root.path()).unwrap();
        let going = GoingStore::open(root.path()).unwrap();
        let notes = Notes::spawn(store.clone(), going.clone()).unwrap();
        notes.take(Note::Going("goes".into(), Some(Micros(7))));
        for n in 0..20 {
            notes.take(Note::Remember(end(&format!("pod-{n}"))));
        }
        notes.take(Note::Forget("pod-3".into()));
        notes.stop();
        let (left, _) = store.load().unwrap();
        assert_eq!((left.len(), going.load().unwrap().0), (19, vec![("goes".into(), Micros(7))]));
        assert!(left.iter().all(|end| end.uid.as_str() != "pod-3"));
    }
}
