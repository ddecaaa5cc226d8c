//! Pulling images: in turn, not too fast, and with credentials.
//!
//! Problem: a node that starts many pods at once must not storm a registry, and a registry may want to know who asks. Approach: the
//! kubelet's (pkg/kubelet/images and pkg/credentialprovider, release 1.36). [`Puller`] is the gate through which each pull goes;
//! [`keyring`] and [`providers`] find the credentials for
//! an image, those of the node first.
//!
//! Properties: pulls begin in the order in which they were asked for; one that is given up leaves its place; no credential is logged.

pub mod keyring;
pub mod providers;

use std::sync::{Mutex, PoisonError};

use beelet_core::pulls::{Bucket, Policy};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::blocking::blocking;
use crate::clock::Clock;
use crate::config::providers::Provider as Settings;
use crate::runtime::repository;
use keyring::{Credentials, Keyring};
use providers::Provider;

/// The gate.
#[derive(Debug)]
pub struct Puller {
    /// Fair: who came first is next.
    turns: Option<Semaphore>,
    bucket: Mutex<Bucket>,
    clock: Clock,
    keyring: Keyring,
    providers: Vec<Provider>,
}

/// A turn; the next one's when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

impl Puller {
    /// A gate with this policy, and these credentials.
    #[must_use]
    pub fn new(policy: Policy, keyring: Keyring, providers: Vec<Settings>) -> Self {
        let turns = policy.parallel.map(|parallel| Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            turns,
            bucket: Mutex::new(Bucket::new(policy)),
            clock: Clock,
            keyring,
            providers: providers.into_iter().map(Provider::new).collect(),
        }
    }

    /// Waits for a turn.
    pub async fn turn(&self) -> Turn<'_> {
        // It is never closed.
        let permit = match &self.turns {
            Some(turns) => turns.acquire().await.ok(),
            None => None,
        };
        Turn { _permit: permit }
    }

    /// Whether one more pull may begin now.
    pub fn may_begin(&self) -> bool {
        // What a panicked holder left is still a bucket.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(self.clock.now().mono)
    }

    /// What to try for an image, in this order. What cannot be had is told in the log, and missing.
    pub async fn credentials(&self, image: &str) -> Vec<Credentials> {
        let (keyring, repository) = (self.keyring.clone(), repository(image));
        let name = repository.clone();
        let mut all = blocking(move || keyring.lookup(&name)).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the node's credentials for registries cannot be used");
            Vec::new()
        });
        for provider in &self.providers {
            match provider.credentials(&repository).await {
                Ok(found) => all.extend(found),
                Err(error) => tracing::warn!(%error, image, "no credentials from that program"),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn puller(parallel: Option<usize>) -> Arc<Puller> {
        Arc::new(Puller::new(Policy { parallel, ..Policy::default() }, Keyring::default(), Vec::new()))
    }

    #[tokio::test]
    async fn a6_2a_pulls_take_turns() {
        for (parallel, at_once) in [(Some(1), 1), (Some(3), 3), (None, 5)] {
            let puller = puller(parallel);
            let mut turns = Vec::new();
            for _ in 0..5 {
                match tokio::time::timeout(Duration::from_millis(20), puller.turn()).await {
                    Ok(turn) => turns.push(turn),
                    Err(_) => break,
                }
            }
            assert_eq!(turns.len(), at_once, "{parallel:?}");
            // Who waits is given the place of who is done.
            if parallel.is_some() {
                turns.pop();
                assert!(tokio::time::timeout(Duration::from_secs(5), puller.turn()).await.is_ok());
            }
        }
    }

    #[tokio::test]
    async fn a6_2a_one_that_is_given_up_holds_nobody_up() {
        let puller = puller(Some(1));
        let first = puller.turn().await;
        let waits = {
            let puller = Arc::clone(&puller);
            tokio::spawn(async move { drop(puller.turn().await) })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        waits.abort();
        drop(first);
        assert!(tokio::time::timeout(Duration::from_secs(5), puller.turn()).await.is_ok());
    }

    #[test]
    fn a6_2b_after_the_burst_none_begins() {
        let puller = puller(Some(1));
        assert_eq!((0..20).filter(|_| puller.may_begin()).count(), 10);
    }
}
