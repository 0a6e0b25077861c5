//! Whether a step's network is closed, and what follows for its start gate. Pure.
//!
//! Two words are needed, for each alone may be wrong: the enforcer's that the rules are in place, and
//! the runner's that it reaches nothing. The second decides: rules that packets do not pass are no
//! wall, and where the network plugin is the wall there are no rules of ours.
//!
//! Silence proves a wall only of what would have been heard without one. Two controls show that, and one
//! of them must succeed. The canary, a port of this supervisor in the very pod in which the gateway
//! answers, is tried by the runner before the rules are made. Where a network plugin closes a pod from
//! its first packet on, or this supervisor was just starting, that try says nothing: then one of the
//! other targets must accept a connection of this supervisor, which no wall holds, from the same node.

use std::time::Duration;

use agent_operator::{
    attempt::GateRequest,
    domain::{
        assignment::EgressPolicy,
        report::{EgressLevel, Refusal},
    },
};

use super::hindrance::Hindrance;

/// How long a network may take to close by its own policies: agents of network plugins follow a new
/// pod within seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the rules of a running step are made again. Whoever loads a ruleset of their own on the node takes ours
/// away, and no longer than this is the network of a step then open; one look is half a dozen short processes.
pub const RENEWAL: Duration = Duration::from_secs(30);
/// Why a step ends whose rules were gone.
pub const REOPENED: &str = "the enforcer's rules of its pod were gone while it ran, so its network may have been open; somebody has removed them on the node (nft flush ruleset, a firewall's reload)";

/// The enforcer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The rules are in place.
    Closed {
        /// Index of the device that they hang on, where the enforcer told it.
        device: Option<u32>,
    },
    /// There are none, in its words.
    NotClosed(String),
}

/// How far the closing has come in this life of the supervisor. Asking again is harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The enforcer was asked.
    pub asked: bool,
    /// Its answer.
    pub answer: Option<Closing>,
    /// What keeps it from answering.
    pub delayed: Option<Hindrance>,
    /// The targets are being tried from here.
    pub trying: bool,
    /// The runner was asked to probe, with this patience.
    pub probing: Option<Duration>,
}

impl Progress {
    /// Index of the device on which the enforcer's rules hang; none where there are none of them.
    pub fn device(&self) -> Option<u32> {
        match self.answer {
            Some(Closing::Closed { device }) => device,
            Some(Closing::NotClosed(_)) | None => None,
        }
    }
}

/// What to do at the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask the enforcer.
    Close {
        /// Until the start deadline; else a short while.
        required: bool,
    },
    /// Try the targets from here: the canary has controlled nothing.
    TryTargets,
    /// Have the runner probe.
    Probe {
        /// How long an open network may take to close.
        patience: Duration,
    },
    /// Something is under way.
    Wait,
    /// Open the gate.
    Open,
    /// Do not start, in these words.
    Refuse(String),
}

/// What to do about an attempt whose runner stands at the gate.
pub fn next(policy: EgressPolicy, gate: &GateRequest, progress: &Progress) -> Next {
    let required = policy == EgressPolicy::Required;
    let answer = match &progress.answer {
        Some(answer) => answer,
        None if progress.asked => return Next::Wait,
        None => return Next::Close { required },
    };
    if gate.canary_before == Some(false) && gate.listening.is_none() {
        return if progress.trying { Next::Wait } else { Next::TryTargets };
    }
    if gate.probe.is_none() && gate.canary_before.is_some() {
        let patience = if required { PATIENCE } else { Duration::ZERO };
        return if progress.probing.is_some() { Next::Wait } else { Next::Probe { patience } };
    }
    match level(Some(gate)) {
        EgressLevel::Unenforced if required => Next::Refuse(why_open(gate, answer)),
        EgressLevel::Enforced | EgressLevel::Unenforced => Next::Open,
    }
}

/// What the runner's probe proves.
pub fn level(gate: Option<&GateRequest>) -> EgressLevel {
    let silent = |gate: &GateRequest| {
        let probe = gate.probe.as_ref();
        probe.is_some_and(|probe| !probe.tried.is_empty() && probe.reached.is_empty())
    };
    if gate.is_some_and(|gate| silent(gate) && controlled(gate)) {
        EgressLevel::Enforced
    } else {
        EgressLevel::Unenforced
    }
}

/// Whether something that was tried would have been reached without a wall.
fn controlled(gate: &GateRequest) -> bool {
    let tried = |target| gate.probe.as_ref().is_some_and(|probe| probe.tried.contains(target));
    gate.canary_before == Some(true) || gate.listening.iter().flatten().any(tried)
}

/// Kind of refusals that are told of packets instead of requests.
pub const DROPPED: &str = "egress-dropped";
/// What they are counted under: the enforcer looks at no more than whether it is the gateway.
const DROPPED_TARGET: &str = "packets past the gateway";

/// What the enforcer has dropped since the gate opened, when it has dropped `now` in all. What the probe has sent before
/// is none of the agent's. A count that is smaller began anew, with rules that were made again.
pub fn dropped(gate: Option<&GateRequest>, now: Option<u64>) -> Option<Refusal> {
    let (before, now) = (gate?.dropped_before?, now?);
    let count = now.checked_sub(before).unwrap_or(now);
    let refusal = Refusal { kind: DROPPED.to_owned(), target: DROPPED_TARGET.to_owned(), count };
    (count > 0).then_some(refusal)
}

fn why_open(gate: &GateRequest, answer: &Closing) -> String {
    let by_enforcer = match answer {
        Closing::Closed { .. } => {
            "the pod's packets do not pass the enforcer's rules (a data path in eBPF?)".to_owned()
        }
        Closing::NotClosed(words) => words.clone(),
    };
    match &gate.probe {
        Some(probe) if probe.reached.is_empty() => {
            let tried: Vec<_> = probe.tried.iter().map(ToString::to_string).collect();
            format!(
                "the task requires closed egress and nothing proves it: none of {} was seen to listen, so that the pod does not reach them says nothing; this node's supervisor must reach the API server or the kubelet",
                tried.join(", ")
            )
        }
        Some(probe) => {
            let reached: Vec<_> = probe.reached.iter().map(ToString::to_string).collect();
            format!(
                "the task requires closed egress and the pod reaches {}: {by_enforcer}",
                reached.join(", ")
            )
        }
        None => format!("the task requires closed egress and nothing proves it: {by_enforcer}"),
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::attempt::ProbeReport;

    use super::*;

    const CANARY: &str = "10.244.0.3:8081";
    const API_SERVER: &str = "10.96.0.1:443";

    fn gate(before: Option<bool>, reached: Option<&[&str]>) -> GateRequest {
        let probe = reached.map(|reached| ProbeReport {
            tried: [CANARY, API_SERVER].map(|text| text.parse().unwrap()).into(),
            reached: reached.iter().map(|text| text.parse().unwrap()).collect(),
        });
        GateRequest { canary_before: before, probe, ..GateRequest::default() }
    }

    fn listening(gate: GateRequest, heard: &[&str]) -> GateRequest {
        let heard = heard.iter().map(|text| text.parse().unwrap()).collect();
        GateRequest { listening: Some(heard), ..gate }
    }

    fn answered(answer: Closing) -> Progress {
        Progress { asked: true, answer: Some(answer), ..Progress::default() }
    }

    fn closed() -> Closing {
        Closing::Closed { device: Some(9) }
    }

    fn open() -> Closing {
        Closing::NotClosed("no enforcer".to_owned())
    }

    #[test]
    fn the_enforcer_is_asked_first_and_once() {
        let at_gate = gate(Some(true), None);
        let first = next(EgressPolicy::Required, &at_gate, &Progress::default());
        assert_eq!(first, Next::Close { required: true });
        let first = next(EgressPolicy::BestEffort, &at_gate, &Progress::default());
        assert_eq!(first, Next::Close { required: false });
        let asked = Progress { asked: true, ..Progress::default() };
        assert_eq!(next(EgressPolicy::Required, &at_gate, &asked), Next::Wait);
    }

    #[test]
    fn whatever_the_enforcer_says_the_runner_probes_before_the_gate_opens() {
        for answer in [closed(), open()] {
            let progress = answered(answer);
            let at_gate = gate(Some(true), None);
            let asked = next(EgressPolicy::Required, &at_gate, &progress);
            assert_eq!(asked, Next::Probe { patience: PATIENCE });
            let asked = next(EgressPolicy::BestEffort, &at_gate, &progress);
            assert_eq!(asked, Next::Probe { patience: Duration::ZERO });
            let probing = Progress { probing: Some(PATIENCE), ..progress };
            assert_eq!(next(EgressPolicy::Required, &at_gate, &probing), Next::Wait);
        }
    }

    #[test]
    fn a_probe_that_reaches_nothing_opens_the_gate_whoever_closed_the_network() {
        for answer in [closed(), open()] {
            let progress = answered(answer);
            let by_canary = gate(Some(true), Some(&[]));
            // A plugin that closes a pod from its first packet on leaves no canary to be reached.
            let by_supervisor = listening(gate(Some(false), Some(&[])), &[API_SERVER]);
            for proven in [by_canary, by_supervisor] {
                assert_eq!(next(EgressPolicy::Required, &proven, &progress), Next::Open);
                assert_eq!(level(Some(&proven)), EgressLevel::Enforced);
            }
        }
    }

    #[test]
    fn where_the_canary_was_silent_before_the_targets_are_tried_from_here_once() {
        let progress = answered(closed());
        for probe in [None, Some(&[][..])] {
            let silent = gate(Some(false), probe);
            assert_eq!(next(EgressPolicy::Required, &silent, &progress), Next::TryTargets);
            let trying = Progress { trying: true, ..progress.clone() };
            assert_eq!(next(EgressPolicy::Required, &silent, &trying), Next::Wait);
        }
        let tried = listening(gate(Some(false), None), &[]);
        let asked = next(EgressPolicy::Required, &tried, &progress);
        assert_eq!(asked, Next::Probe { patience: PATIENCE }, "an open one is to be told as such");
    }

    #[test]
    fn a_probe_whose_control_did_not_succeed_proves_nothing_and_says_so() {
        for answer in [closed(), open()] {
            let progress = answered(answer);
            for heard in [&[][..], &["10.96.0.99:443"]] {
                let silent = listening(gate(Some(false), Some(&[])), heard);
                assert_eq!(level(Some(&silent)), EgressLevel::Unenforced, "{heard:?}");
                let Next::Refuse(words) = next(EgressPolicy::Required, &silent, &progress) else {
                    panic!("silence was taken for a wall: {heard:?}");
                };
                assert!(words.contains(API_SERVER) && words.contains("supervisor must"), "{words}");
                assert_eq!(next(EgressPolicy::BestEffort, &silent, &progress), Next::Open);
            }
        }
    }

    #[test]
    fn what_is_reached_counts_however_its_control_went() {
        let reached = listening(gate(Some(false), Some(&[CANARY])), &[API_SERVER]);
        assert_eq!(level(Some(&reached)), EgressLevel::Unenforced);
    }

    #[test]
    fn an_open_network_refuses_a_task_that_requires_a_closed_one_and_says_what_was_reached() {
        for (answer, word) in [(closed(), "eBPF"), (open(), "no enforcer")] {
            let reached = gate(Some(true), Some(&[CANARY]));
            let progress = answered(answer);
            let Next::Refuse(words) = next(EgressPolicy::Required, &reached, &progress) else {
                panic!("an open network was accepted");
            };
            assert!(words.contains(CANARY) && words.contains(word), "{words}");
            assert_eq!(next(EgressPolicy::BestEffort, &reached, &progress), Next::Open);
            assert_eq!(level(Some(&reached)), EgressLevel::Unenforced);
        }
    }

    #[test]
    fn packets_that_were_dropped_before_the_gate_opened_are_none_of_the_agents() {
        let at_gate = |before| GateRequest { dropped_before: before, ..GateRequest::default() };
        for (before, now, count) in [
            (Some(3), Some(3), None),
            (Some(3), Some(5), Some(2)),
            (Some(3), Some(1), Some(1)),
            (None, Some(5), None),
            (Some(3), None, None),
        ] {
            let told = dropped(Some(&at_gate(before)), now).map(|refusal| refusal.count);
            assert_eq!(told, count, "{before:?} {now:?}");
        }
        assert_eq!(dropped(None, Some(5)), None);
    }

    #[test]
    fn rules_without_a_probe_prove_nothing() {
        let silent = gate(None, None);
        let progress = answered(closed());
        assert!(matches!(next(EgressPolicy::Required, &silent, &progress), Next::Refuse(_)));
        assert_eq!(next(EgressPolicy::BestEffort, &silent, &progress), Next::Open);
        assert_eq!(level(None), EgressLevel::Unenforced);
        let nothing_tried =
            GateRequest { probe: Some(ProbeReport::default()), ..GateRequest::default() };
        assert_eq!(level(Some(&nothing_tried)), EgressLevel::Unenforced);
    }
}
