//! What is shown of a container.
//!
//! Rules: pkg/kubelet/kubelet_pods.go, `convertToAPIContainerStatuses` (release 1.36). Where upstream asks what it showed before,
//! here is asked what is remembered of the container ([`ContainerTrack`]).

use std::borrow::Cow;

use crate::done::is_pull;
use crate::event::{ContainerFact, ContainerFactState, Exit};
use crate::pod::Pod;
use crate::restart;
use crate::spec::{ContainerSpec, PodSpec};
use crate::track::ContainerTrack;
use crate::units::{Micros, Now};

/// The messages of all ends of a pod together have so many bytes (pkg/kubelet/container, MaxPodTerminationMessageLogLength).
const MESSAGES: usize = 12 << 10;
/// So long after a failure the kubelet looks at the pod again, and says from then on that it backs off (pkg/kubelet/kubelet.go,
/// backOffPeriod).
const LOOKS_AGAIN: Micros = Micros::secs(10);
/// What is said of an init container that the runtime does not have any more and that must have ended well.
const INFERRED: &str = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";

/// A container as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct ContainerStatus<'a> {
    pub(crate) spec: &'a ContainerSpec,
    /// It is an init container.
    pub(crate) init: bool,
    /// One that runs as long as the pod.
    pub(crate) sidecar: bool,
    /// Its latest run, as the runtime tells it.
    pub(crate) run: Option<&'a ContainerFact>,
    /// `state`.
    pub(crate) state: State<'a>,
    /// `lastState`.
    pub(crate) last: Option<Cow<'a, Exit>>,
    /// The runtime's id of the run that `last` is the end of, "" for unknown.
    pub(crate) last_id: &'a str,
    /// `started`.
    pub(crate) started: bool,
    /// `ready`.
    pub(crate) ready: bool,
    /// `restartCount`.
    pub(crate) restarts: u32,
    /// It has ended, and is run again.
    pub(crate) again: bool,
}

/// `state`, without copies of what may be long.
#[derive(Clone, Debug)]
pub(crate) enum State<'a> {
    Waiting { reason: Cow<'a, str>, message: Cow<'a, str> },
    Running { started: Micros },
    Ended(Cow<'a, Exit>),
}

impl ContainerStatus<'_> {
    /// The end that counts for the phase: of the run that is shown, or while it waits of the one before.
    pub(crate) fn end(&self) -> Option<&Exit> {
        match &self.state {
            State::Running { .. } => None,
            State::Ended(exit) => Some(exit),
            State::Waiting { .. } => self.last.as_deref(),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }
}

/// All containers of a pod, the initialising ones first, in the order of the manifest.
pub(crate) fn of(max_backoff: Micros, pod: &Pod, now: Now) -> Vec<ContainerStatus<'_>> {
    let (init, main) = (pod.spec.init_containers.iter(), pod.spec.containers.iter());
    let count = init.len() + main.len();
    let each = MESSAGES.checked_div(count).unwrap_or(MESSAGES);
    let all = init.map(|c| (true, c)).chain(main.map(|c| (false, c)));
    all.map(|(init, container)| status(max_backoff, pod, container, init, each, now)).collect()
}

fn status<'a>(
    max_backoff: Micros,
    pod: &'a Pod,
    spec: &'a ContainerSpec,
    init: bool,
    message: usize,
    now: Now,
) -> ContainerStatus<'a> {
    let track = pod.tracks.get(&spec.name).map(AsRef::as_ref);
    let run = pod.latest(&spec.name);
    let sidecar = init && restart::is_sidecar(&pod.spec, spec);
    let state = match track {
        Some(track) => state(max_backoff, pod, spec, track, init && !sidecar, now),
        None => waiting(default_reason(&pod.spec), ""),
    };
    let state = match state {
        State::Ended(exit) => State::Ended(cut(exit, message)),
        state => state,
    };
    let last = track.filter(|_| !matches!(state, State::Ended(_))).and_then(|track| track.last_exit.as_ref());
    let id = run.map(|fact| fact.id.as_str()).unwrap_or_default();
    let (started, ready) = match &state {
        // An init container is ready when it is over.
        State::Running { .. } if init && !sidecar => (true, false),
        State::Running { .. } => track.map_or((true, true), |track| track.probes.status(spec, id)),
        State::Ended(exit) => (false, init && !sidecar && exit.code == 0),
        State::Waiting { .. } => (false, false),
    };
    let mut status = ContainerStatus {
        spec,
        init,
        sidecar,
        run,
        state,
        last: last.map(|exit| cut(Cow::Borrowed(exit), message)),
        last_id: track.map(|track| track.last_id.as_str()).unwrap_or_default(),
        started,
        ready,
        restarts: track.map_or(0, ContainerTrack::restarts),
        again: false,
    };
    status.again = status.end().is_some_and(|exit| match run {
        Some(fact) => pod.runs_again(fact, spec, exit.code),
        None => restart::runs_again(&pod.spec, spec, exit.code),
    });
    status
}

fn waiting<'a>(reason: &'a str, message: impl Into<Cow<'a, str>>) -> State<'a> {
    State::Waiting { reason: Cow::Borrowed(reason), message: message.into() }
}

/// What every container of a pod says that was never tried.
fn default_reason(pod: &PodSpec) -> &'static str {
    if pod.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" }
}

/// `initialises`: it is an init container, and no sidecar.
fn state<'a>(
    max_backoff: Micros,
    pod: &'a Pod,
    spec: &'a ContainerSpec,
    track: &'a ContainerTrack,
    initialises: bool,
    now: Now,
) -> State<'a> {
    let over = !pod.state.is_live();
    let run = pod.latest(&spec.name);
    // The kernel has told of its end, and the runtime has not yet.
    if let Some(exit) = run.and_then(|fact| pod.early_end(fact)) {
        return State::Ended(Cow::Borrowed(exit));
    }
    match run.map(|fact| (fact, &fact.state)) {
        Some((_, ContainerFactState::Running { started })) => return State::Running { started: *started },
        Some((fact, ContainerFactState::Exited(exit))) if over || !pod.runs_again(fact, spec, exit.code) => {
            return State::Ended(Cow::Borrowed(exit));
        }
        Some(_) => {}
        None => {
            let known = track.last_exit.as_ref();
            if let Some(exit) = known.filter(|_| over).or_else(|| pod.ended_unseen(spec)) {
                return State::Ended(Cow::Borrowed(exit));
            }
            let made = |fact: &ContainerFact| !matches!(fact.state, ContainerFactState::Unknown);
            if initialises && pod.spec.containers.iter().any(|c| pod.latest(&c.name).is_some_and(made)) {
                return State::Ended(match known {
                    Some(exit) if exit.code == 0 => Cow::Borrowed(exit),
                    _ => Cow::Owned(inferred()),
                });
            }
        }
    }
    if let Some(trouble) = &track.trouble {
        let pulling = is_pull(&trouble.reason);
        let failed = track.retry_at - track.image.delay();
        if pulling && now.mono < track.retry_at && now.mono >= failed + LOOKS_AGAIN {
            let message = format!("Back-off pulling image \"{}\": {}: {}", spec.image, trouble.reason, trouble.message);
            return waiting("ImagePullBackOff", message);
        }
        return waiting(&trouble.reason, trouble.message.as_str());
    }
    if let Some(exit) = track.last_exit.as_ref().filter(|_| run.is_some()) {
        if now.mono < track.crash.ready_at(track.exit_seen, max_backoff) {
            return waiting("CrashLoopBackOff", backoff_message(track.crash.delay(), &spec.name, &pod.spec));
        }
        return State::Ended(Cow::Borrowed(exit));
    }
    match run {
        // Made, and about to be started: the kubelet says nothing of it.
        Some(_) => waiting("", ""),
        None => waiting(default_reason(&pod.spec), ""),
    }
}

fn inferred() -> Exit {
    Exit {
        started: Micros::ZERO,
        finished: Micros::ZERO,
        code: 0,
        reason: "Completed".to_owned(),
        message: INFERRED.to_owned(),
    }
}

/// The same end with a message of at most so many bytes.
fn cut(exit: Cow<'_, Exit>, bytes: usize) -> Cow<'_, Exit> {
    if exit.message.len() <= bytes {
        return exit;
    }
    let mut exit = exit.into_owned();
    exit.message.truncate(exit.message.floor_char_boundary(bytes));
    Cow::Owned(exit)
}

/// The kubelet's words (pkg/kubelet/kuberuntime/kuberuntime_manager.go, release 1.36).
#[must_use]
pub(crate) fn backoff_message(delay: Micros, container: &str, pod: &PodSpec) -> String {
    let delay = go_duration(delay);
    format!("back-off {delay} restarting failed container={container} pod={}", pod_words(pod))
}

/// A pod as the kubelet's messages name it (pkg/kubelet/util/format, Pod).
#[must_use]
pub(crate) fn pod_words(pod: &PodSpec) -> String {
    format!("{}_{}({})", pod.name, pod.namespace, pod.uid)
}

/// As Go prints a duration, cut to milliseconds: `0s`, `250ms`, `1.5s`, `1m20s`, `1h0m5s`.
#[must_use]
pub(crate) fn go_duration(time: Micros) -> String {
    let millis = time.0 / 1_000;
    let (secs, rest) = (millis / 1_000, millis % 1_000);
    if secs == 0 && rest > 0 {
        return format!("{rest}ms");
    }
    let part = if rest == 0 { String::new() } else { format!(".{rest:03}").trim_end_matches('0').to_owned() };
    let (hours, minutes, secs) = (secs / 3_600, secs / 60 % 60, secs % 60);
    match (hours, minutes) {
        (0, 0) => format!("{secs}{part}s"),
        (0, _) => format!("{minutes}m{secs}{part}s"),
        _ => format!("{hours}h{minutes}m{secs}{part}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_is_told_in_the_kubelets_words() {
        let mut pod = PodSpec::unknown("u1".into());
        pod.name = "p".to_owned();
        assert_eq!(
            backoff_message(Micros::secs(80), "c", &pod),
            "back-off 1m20s restarting failed container=c pod=p_default(u1)"
        );
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (micros, words) in [
            (0, "0s"),
            (999, "0s"),
            (250_000, "250ms"),
            (1_500_999, "1.5s"),
            (2_034_000, "2.034s"),
            (10_000_000, "10s"),
            (80_000_000, "1m20s"),
            (300_000_000, "5m0s"),
            (3_605_250_000, "1h0m5.25s"),
        ] {
            assert_eq!(go_duration(Micros(micros)), words);
        }
    }

    #[test]
    fn a4_18e_a_message_is_cut_between_characters() {
        let exit = |message: &str| Exit { message: message.to_owned(), ..inferred() };
        assert_eq!(cut(Cow::Owned(exit("ab\u{20ac}")), 4).message, "ab");
        assert_eq!(cut(Cow::Owned(exit("ab\u{20ac}")), 5).message, "ab\u{20ac}");
    }
}
