//! The agent's tasks, by name, so that the end of one does not go unnoticed.
//!
//! Problem: a task that panics, or ends though it should not, leaves an agent that answers and is blind. Approach: whoever runs
//! the cycle also waits here; a panic of any task, and the end of one that the agent cannot go on without, is an
//! [`AgentError`], and the supervisor starts the agent anew: pods go on meanwhile.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};

use super::AgentError;

#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    /// Its name, and whether it may end.
    names: HashMap<Id, (&'static str, bool)>,
}

impl Tasks {
    /// Starts a task that may end: what it did is done in another way, or not at all.
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.set.spawn(task).id(), (name, true));
    }

    /// Starts a task that the agent cannot go on without.
    pub(super) fn spawn_vital(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.set.spawn(task).id(), (name, false));
    }

    /// Waits for the first task whose end the agent cannot go on from; for ever while there is none.
    pub(super) async fn failed(&mut self) -> AgentError {
        while let Some(ended) = self.set.join_next_with_id().await {
            let (id, panicked) = match &ended {
                Ok((id, ())) => (*id, false),
                Err(error) => (error.id(), error.is_panic()),
            };
            let (task, may_end) = self.names.remove(&id).unwrap_or(("unknown", true));
            if panicked {
                return AgentError::Panicked { task };
            }
            if !may_end {
                return AgentError::Ended { task };
            }
        }
        std::future::pending().await
    }

    /// Ends all of them.
    pub(super) async fn shutdown(mut self) {
        self.set.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_the_end_of_a_vital_task_are_told_by_name() {
        let mut tasks = Tasks::default();
        tasks.spawn("may end", async {});
        tasks.spawn("goes on", std::future::pending());
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(50), tasks.failed()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        tasks.spawn("breaks", async { panic!("on purpose") });
        assert!(matches!(tasks.failed().await, AgentError::Panicked { task: "breaks" }));
        tasks.spawn_vital("listing", async {});
        assert!(matches!(tasks.failed().await, AgentError::Ended { task: "listing" }));
        tasks.shutdown().await;
    }
}
