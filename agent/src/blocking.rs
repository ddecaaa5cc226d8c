//! Work that blocks.

/// Runs what blocks on a thread for that; a panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the tokio runtime is going down, and nothing awaits this any more.
            Err(_) => std::future::pending().await,
        },
    }
}
