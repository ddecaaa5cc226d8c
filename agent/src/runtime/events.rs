//! Wake-ups from the runtime's event stream.
//!
//! Problem: a full listing every second is late and costly, and an event stream loses events whenever it breaks. Approach: an
//! event says only that something changed, and the caller then lists; each new connection counts as a change, because events
//! may have been missed before it.
//!
//! A gRPC server in Go sends nothing, not even headers, before its first event, so "the stream is open" cannot be seen. The
//! runtime is therefore asked for its version first; if it answers, and the stream does not fail within [`SETTLE`], it is open.
//!
//! Property: what happens while the stream is open, and what happened while it was not, leads to a [`Wake`].

use std::time::Duration;

use beelet_proto::cri;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt};
use tonic::{Response, Status, Streaming};

use super::client::Runtime;
use super::error::RuntimeError;

const RPC: &str = "GetContainerEvents";

/// The first pause after a broken stream; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a refusal of the stream may take.
const SETTLE: Duration = Duration::from_millis(200);

/// Why to list now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something changed, or may have changed unseen.
    Changed,
    /// The stream broke or could not be opened; it is tried again after a pause.
    Lost(String),
    /// The runtime has no event stream. The last item: list every second instead.
    Unsupported(String),
}

type Events = Streaming<cri::ContainerEventResponse>;

enum State {
    /// To be opened after this pause.
    Closed(Duration),
    /// Asked for. Answered by the first event.
    Opening(BoxFuture<'static, Result<Response<Events>, Status>>),
    Open(Box<Events>),
    Ended,
}

impl Runtime {
    /// Tells when to list. Ends only where the runtime has no event stream.
    pub fn watch(&self) -> impl Stream<Item = Wake> + Send + Unpin + '_ {
        Box::pin(stream::unfold((State::Closed(Duration::ZERO), FIRST_PAUSE), move |(state, pause)| async move {
            let next = match state {
                State::Ended => return None,
                State::Closed(wait) => {
                    tokio::time::sleep(wait).await;
                    self.open_events().await
                }
                State::Opening(opening) => self.judge(RPC, opening.await).map(|events| State::Open(Box::new(events))),
                State::Open(events) => self.next_event(events).await,
            };
            Some(match next {
                Ok(state @ State::Opening(_)) => (Wake::Changed, (state, pause)),
                // Only an event shows that the stream works: until then the pauses go on growing.
                Ok(state) => (Wake::Changed, (state, FIRST_PAUSE)),
                Err(error @ RuntimeError::Unimplemented { .. }) => {
                    (Wake::Unsupported(error.to_string()), (State::Ended, pause))
                }
                Err(error) => (Wake::Lost(error.to_string()), (State::Closed(pause), (pause * 2).min(LONGEST_PAUSE))),
            })
        }))
    }

    async fn open_events(&self) -> Result<State, RuntimeError> {
        self.version().await?;
        let mut client = self.pods();
        let mut opening = async move { client.get_container_events(cri::GetEventsRequest {}).await }.boxed();
        match tokio::time::timeout(SETTLE, &mut opening).await {
            Ok(answer) => Ok(State::Open(Box::new(self.judge(RPC, answer)?))),
            Err(_) => Ok(State::Opening(opening)),
        }
    }

    /// Waits for one event and takes those that are there already.
    async fn next_event(&self, mut events: Box<Events>) -> Result<State, RuntimeError> {
        let ended = || RuntimeError::Unavailable { rpc: RPC, reason: "the stream ended".to_owned() };
        let first = events.next().await.ok_or_else(ended)?;
        self.judge(RPC, first.map(Response::new))?;
        // An end or an error here is seen again by the next call.
        while let Some(Some(Ok(_))) = events.next().now_or_never() {}
        Ok(State::Open(events))
    }
}
