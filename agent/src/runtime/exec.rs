//! Commands in containers.
//!
//! Property: a command that takes too long is killed by the runtime; one whose answer does not come is given up, which ends the call
//! and, in the runtime, the command.

use std::time::Duration;

use beelet_proto::cri;
use tonic::Code;

use super::client::Runtime;
use super::error::RuntimeError;

/// What the runtime is given beyond a command's own time to end it and to say so. The kubelet gives `runtimeRequestTimeout`, 2 min;
/// here a probe that hangs in the runtime must not block the next ones for so long.
const AFTER: Duration = Duration::from_secs(10);

/// What a command left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote to stdout, and after it what it wrote to stderr.
    pub output: Vec<u8>,
    /// Its exit code.
    pub code: i32,
}

/// Why there is no exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// It was killed. The words are those of k8s.io/cri-client (release 1.36).
    #[error("command timed out: {command:?} timed out after {after:?}")]
    TimedOut {
        /// The command, its words joined by blanks.
        command: String,
        /// Its time.
        after: Duration,
    },
    /// It could not be run, or nobody knows how it ended.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Runtime {
    /// Runs a command in a running container, for at most `timeout` (whole seconds, at least one).
    ///
    /// # Errors
    /// If it has no exit code.
    pub async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput, ExecError> {
        let timed_out = || ExecError::TimedOut { command: command.join(" "), after: timeout };
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(timeout.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let within = timeout.saturating_add(AFTER);
        match self.call("ExecSync", within, self.pods().exec_sync(request)).await {
            Ok(answer) => {
                let mut output = answer.stdout;
                output.extend(answer.stderr);
                Ok(ExecOutput { output, code: answer.exit_code })
            }
            Err(RuntimeError::Rejected { code: Code::DeadlineExceeded, .. } | RuntimeError::Timeout { .. }) => {
                Err(timed_out())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    fn words(command: &str) -> Vec<String> {
        command.split(' ').map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a5_5c_a_command_has_its_exit_its_timeout_or_an_error() {
        let fake = Fake::start();
        let runtime = Runtime::connect(&fake.endpoint(), Duration::from_secs(5), "i1").expect("a socket's address");
        let exec = async |command: &str| runtime.exec("c1", &words(command), Duration::from_millis(1_500)).await;
        assert_eq!(exec("true").await, Ok(ExecOutput { output: b"fine".into(), code: 0 }));
        assert_eq!(exec("fail").await, Ok(ExecOutput { output: b"out err".into(), code: 3 }), "stdout, then stderr");
        let late = exec("slow one").await.expect_err("too slow").to_string();
        assert_eq!(late, "command timed out: \"slow one\" timed out after 1.5s");
        assert!(matches!(exec("missing").await, Err(ExecError::Runtime(RuntimeError::Rejected { .. }))));
        let asked = fake.with(|world| world.calls.clone());
        assert!(asked.contains(&"ExecSync c1 slow one 1".to_owned()), "{asked:?}");
    }

    #[tokio::test]
    async fn a5_5c_a_command_that_is_given_up_ends_in_the_runtime_too() {
        let fake = Fake::start();
        fake.with(|world| world.hangs.insert("hang".to_owned()));
        let runtime = Runtime::connect(&fake.endpoint(), Duration::from_secs(5), "i1").expect("a socket's address");
        let hang = words("hang");
        let given_up = tokio::time::timeout(Duration::from_millis(100), runtime.exec("c1", &hang, AFTER));
        assert!(given_up.await.is_err());
        // The connection is not hurt by it.
        assert!(runtime.exec("c1", &words("true"), AFTER).await.is_ok());
    }
}
