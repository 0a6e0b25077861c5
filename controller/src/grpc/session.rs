//! One session with a supervisor, from its Hello to its end.

use std::time::Duration;

use agent_operator::{
    convert::{self, ConvertError},
    domain::{Epoch, NodeName, limits},
    proto::v1,
};
use futures::{Stream, StreamExt as _};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use v1::{controller_message::Message as Down, supervisor_message::Message as Up};

use super::{auth::Authority, status::from_convert, wire};
use crate::{
    clock,
    fleet::{
        judging::Queued,
        sessions::{Ending, SessionId, Sessions},
    },
    lease::{Leader, Leadership},
    metrics::Metrics,
};

/// Longest wait for the Hello: a peer that is silent from the start holds nothing here.
const HELLO_WAIT: Duration = Duration::from_secs(10);

/// Longest wait for room to say why a session ends; the peer may not be reading.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);

/// Longest time between two showings of the token: two renewals and a minute, so that one may be
/// lost with a reconnect.
const TOKEN_SHOWN_MAX: Duration = Duration::from_mins(11);

/// What a session needs of the process.
#[derive(Clone)]
pub struct Context {
    /// Reviews tokens that are shown again.
    pub authority: std::sync::Arc<Authority>,
    /// The table of sessions.
    pub sessions: Sessions,
    /// Whether this replica may speak to nodes.
    pub leadership: Leadership,
    /// Counts sessions and bad messages.
    pub metrics: Metrics,
    /// The end of the process.
    pub stop: CancellationToken,
}

/// What comes from the supervisor: a call's messages, or those of a simulated link.
pub trait Inbound: Stream<Item = Result<v1::SupervisorMessage, Status>> + Unpin + Send {}

impl<S: Stream<Item = Result<v1::SupervisorMessage, Status>> + Unpin + Send> Inbound for S {}

/// Answers to the supervisor.
pub type Answers = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

/// Why a session is over.
enum End {
    /// Said in a message of the protocol.
    Rejected(v1::Rejected),
    /// Said as the status of the call.
    Status(Status),
    /// The peer has gone; there is nobody to tell.
    Gone,
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Serves a session until either side ends it, and says why.
pub async fn serve(context: Context, node: NodeName, mut inbound: impl Inbound, answers: Answers) {
    let last = match run(&context, &node, &mut inbound, &answers).await {
        End::Gone => return,
        End::Rejected(rejected) => {
            tracing::info!(%node, reason = rejected.reason, details = rejected.message, "session rejected");
            Ok(wire::down(Down::Rejected(rejected)))
        }
        End::Status(status) => {
            tracing::info!(%node, code = ?status.code(), details = status.message(), "session ended");
            Err(status)
        }
    };
    // Fails when the peer is gone or does not read; either way it learns by the closed stream.
    let _ = timeout(FAREWELL_WAIT, answers.send(last)).await;
}

async fn run(
    context: &Context,
    node: &NodeName,
    inbound: &mut impl Inbound,
    answers: &Answers,
) -> End {
    let hello = match timeout(HELLO_WAIT, inbound.next()).await {
        Ok(Some(Ok(v1::SupervisorMessage { message: Some(Up::Hello(hello)) }))) => hello,
        Ok(Some(Ok(_))) => return Status::invalid_argument("a session opens with Hello").into(),
        Ok(None | Some(Err(_))) => return End::Gone,
        Err(_) => return Status::deadline_exceeded("no Hello").into(),
    };
    if let Some(problem) = wire::version_problem(hello.protocol_version) {
        return End::Rejected(wire::rejected(wire::VERSION_UNSUPPORTED, problem));
    }
    if hello.node_name != node.as_str() {
        let problem = format!("the token is bound to node {node}, not to {}", hello.node_name);
        return End::Rejected(wire::rejected(wire::UNAUTHORIZED, problem));
    }
    let Some(term) = context.leadership.term(clock::instant()) else {
        return not_leading(context.leadership.other());
    };
    let (view, known) = match wire::hello(hello) {
        Ok(hello) => hello,
        Err(error) => return from_convert(&error).into(),
    };
    let accepted = v1::Accepted {
        epoch: term.epoch.0,
        heartbeat_interval: Some(convert::wire_duration(limits::HEARTBEAT_INTERVAL)),
        address: context.leadership.address().unwrap_or_default().to_owned(),
    };
    if answers.send(Ok(wire::down(Down::Accepted(accepted)))).await.is_err() {
        return End::Gone;
    }
    tracing::info!(%node, instance = %view.instance, known = known.len(), "session opened");
    let Ok(session) = context.sessions.open(view, known, clock::instant()).await else {
        return Status::unavailable("the controller is shutting down").into();
    };
    context.metrics.set_sessions(context.sessions.count());
    let id = session.id();
    let end = tokio::select! {
        end = listen(context, &id, node, inbound) => end,
        end = speak(&context.leadership, term.epoch, session.commands, answers) => end,
        end = ended(session.ending) => end,
        // A term that was lost ends no session: the node would find nobody. Another leader does.
        other = context.leadership.superseded() => not_leading(Some(other)),
        () = context.stop.cancelled() => {
            Status::unavailable("the controller is shutting down").into()
        }
    };
    context.sessions.close(&id).await;
    context.metrics.set_sessions(context.sessions.count());
    end
}

/// Sends the node to whoever leads, as far as that is known.
fn not_leading(other: Option<Leader>) -> End {
    End::Rejected(v1::Rejected {
        leader_address: other.and_then(|other| other.address).unwrap_or_default(),
        ..wire::rejected(wire::NOT_LEADER, "this replica does not lead")
    })
}

/// Waits for the table to end the session.
async fn ended(mut ending: watch::Receiver<Option<Ending>>) -> End {
    let reason = ending.wait_for(Option::is_some).await.map(|reason| *reason);
    match reason {
        Ok(Some(Ending::Silent)) => {
            Status::deadline_exceeded("nothing came for longer than the node lease").into()
        }
        _ => End::Rejected(wire::rejected(
            wire::DUPLICATE,
            "a newer supervisor of this node has connected",
        )),
    }
}

/// Sends commands as they come and, from the place in their queue on that is marked for it, the
/// permission to write upstream for as long as we lead.
///
/// What the gateway holds beyond the Hello needs no order before a permit: it lets an attempt that its
/// supervisor has no record of write nothing, until that one has looked at the run and registers it.
async fn speak(
    leadership: &Leadership,
    epoch: Epoch,
    mut commands: mpsc::Receiver<Queued>,
    answers: &Answers,
) -> End {
    let mut permits = tokio::time::interval(limits::HEARTBEAT_INTERVAL);
    permits.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut judged = false;
    loop {
        let message = tokio::select! {
            // Permits first: no flood of commands can let a good permission run out.
            biased;
            _ = permits.tick(), if judged => {
                let now = clock::instant();
                match leadership.term(now) {
                    // Another leader between the two may have given up what runs there, and what the
                    // node has was judged in the old one: it has to be named again.
                    Some(term) if term.epoch != epoch => {
                        return Status::unavailable("a new term has begun").into();
                    }
                    term => term.and_then(|term| wire::write_permit(term, now)).map(Down::WritePermit),
                }
            }
            queued = commands.recv() => match queued {
                Some(Queued::Command(command)) => Some(wire::command(command)),
                Some(Queued::Judged) => {
                    judged = true;
                    None
                }
                // The table drops its end only when a newer session takes the place.
                None => std::future::pending().await,
            },
        };
        if let Some(message) = message
            && answers.send(Ok(wire::down(message))).await.is_err()
        {
            return End::Gone;
        }
    }
}

/// Takes what the node says until it hangs up.
async fn listen(
    context: &Context,
    id: &SessionId,
    node: &NodeName,
    inbound: &mut impl Inbound,
) -> End {
    let mut token_until = clock::instant() + TOKEN_SHOWN_MAX;
    loop {
        let message = match timeout_at(token_until, inbound.next()).await {
            Ok(Some(Ok(message))) => message.message,
            Ok(None | Some(Err(_))) => return End::Gone,
            Err(_) => {
                let problem = "the token was not shown again in time";
                return End::Rejected(wire::rejected(wire::UNAUTHORIZED, problem));
            }
        };
        // While we deal with it, silence is ours, not the node's.
        context.sessions.heard(id, None);
        match take(context, id, node, message).await {
            Ok(Some(deadline)) => token_until = deadline,
            Ok(None) => {}
            Err(end) => return end,
        }
        context.sessions.heard(id, Some(clock::instant()));
    }
}

/// Deals with one message; gives the new token deadline when it was a token.
async fn take(
    context: &Context,
    id: &SessionId,
    node: &NodeName,
    message: Option<Up>,
) -> Result<Option<Instant>, End> {
    let event = match message {
        Some(Up::Heartbeat(heartbeat)) => {
            context.sessions.running(id, heartbeat.running);
            return Ok(None);
        }
        Some(Up::TokenRenewal(renewal)) => {
            return check_token(context, node, &renewal.token).await.map(Some);
        }
        Some(Up::AssignmentAck(ack)) => wire::assignment_ack(node, ack),
        Some(Up::Report(report)) => wire::report(node, report),
        Some(Up::PreflightReport(report)) => wire::preflight(node, report),
        Some(Up::NeedCredentials(need)) => wire::need_credentials(node, need),
        Some(Up::Hello(_)) => return Err(Status::invalid_argument("a second Hello").into()),
        None => Err(ConvertError::missing("message")),
    };
    match event {
        Ok(event) => context
            .sessions
            .announce(id, event)
            .await
            .map_err(|_| End::from(Status::unavailable("the controller is shutting down")))?,
        // One message that makes no sense must not cut off all the others of the node.
        Err(error) => {
            context.metrics.bad_message();
            tracing::warn!(%node, %error, "message of a node passed over");
        }
    }
    Ok(None)
}

/// Reviews a token that was shown again.
async fn check_token(context: &Context, node: &NodeName, token: &str) -> Result<Instant, End> {
    match context.authority.supervisor_node(token).await {
        Ok(bound) if bound == *node => {}
        Ok(bound) => {
            let problem = format!("the renewed token is bound to node {bound}");
            return Err(End::Rejected(wire::rejected(wire::UNAUTHORIZED, problem)));
        }
        // The session was authenticated when it opened; an API server that is away is no reason to
        // cut off a node, and its next token comes in minutes.
        Err(status) if status.code() == Code::Unavailable => {
            tracing::warn!(%node, "a renewed token could not be reviewed, the session stays");
        }
        Err(status) => {
            return Err(End::Rejected(wire::rejected(wire::UNAUTHORIZED, status.message())));
        }
    }
    Ok(clock::instant() + TOKEN_SHOWN_MAX)
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, Reason, RunKey};

    use super::*;
    use crate::{fleet::Command, lease::Term};

    type Heard = mpsc::Receiver<Result<v1::ControllerMessage, Status>>;

    /// A session under epoch 3: its queue, its terms, what the node hears, and how it ends.
    fn speaking()
    -> (mpsc::Sender<Queued>, watch::Sender<Option<Term>>, Heard, tokio::task::JoinHandle<End>)
    {
        let (commands, queue) = mpsc::channel(4);
        let (answers, heard) = mpsc::channel(64);
        let valid_until = clock::instant() + Duration::from_secs(5);
        let (terms, term) = watch::channel(Some(Term { epoch: Epoch(3), valid_until }));
        let leadership = Leadership::new(term);
        let speaking =
            tokio::spawn(async move { speak(&leadership, Epoch(3), queue, &answers).await });
        (commands, terms, heard, speaking)
    }

    #[tokio::test(start_paused = true)]
    async fn permits_come_while_the_term_holds_never_outlive_it_and_stop_with_it() {
        let (commands, _terms, mut heard, speaking) = speaking();
        commands.send(Queued::Judged).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        speaking.abort();
        let mut validities = Vec::new();
        while let Some(Ok(message)) = heard.recv().await {
            let Some(Down::WritePermit(permit)) = message.message else { panic!() };
            let valid_for = convert::duration("valid_for", permit.valid_for).unwrap();
            validities.push(valid_for.as_millis());
        }
        assert_eq!(validities, [5000, 3500, 2000, 500]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_goes_out_before_what_the_node_named_is_judged_and_told_to_end() {
        let (commands, _terms, mut heard, _speaking) = speaking();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(heard.try_recv().is_err(), "not judged yet");
        let cancel = Command::Cancel {
            run: RunKey { uid: "u".into(), attempt: Attempt(1) },
            epoch: Epoch(3),
            reason: Reason::Cancelled,
            message: "given up".to_owned(),
        };
        commands.send(Queued::Command(cancel)).await.unwrap();
        commands.send(Queued::Judged).await.unwrap();
        let mut next = async || heard.recv().await.unwrap().unwrap().message.unwrap();
        assert!(matches!(next().await, Down::Cancel(_)));
        assert!(matches!(next().await, Down::WritePermit(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_was_judged_in_an_older_term_gets_no_permit_of_the_next_and_ends() {
        let (commands, terms, mut heard, speaking) = speaking();
        commands.send(Queued::Judged).await.unwrap();
        assert!(heard.recv().await.is_some());
        let valid_until = clock::instant() + Duration::from_secs(5);
        terms.send_replace(Some(Term { epoch: Epoch(5), valid_until }));
        let End::Status(status) = speaking.await.unwrap() else { panic!() };
        assert_eq!(status.code(), Code::Unavailable);
        assert!(heard.recv().await.is_none(), "nothing more was sent");
    }
}
