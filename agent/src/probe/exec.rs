//! A command in the container (pkg/probe/exec/exec.go).

use std::time::Duration;

use beelet_core::probe::Answer;

use super::{text, unknown};
use crate::act::PodRuntime;
use crate::runtime::ExecError;

/// Ends with 0, or not, or cannot be run. A command that takes too long has failed.
pub(super) async fn run<R: PodRuntime>(runtime: &R, run: &str, command: &[String], timeout: Duration) -> Answer {
    match runtime.exec(run, command, timeout).await {
        Ok(left) if left.code == 0 => Answer::Success,
        Ok(left) => Answer::Failure(text(&left.output)),
        Err(error @ ExecError::TimedOut { .. }) => Answer::Failure(error.to_string()),
        Err(ExecError::Runtime(error)) => unknown(&error.to_string()),
    }
}
