//! The sessions that are open: one a node, the newest wins. Commands go into each session's bounded
//! queue; events of all sessions go into one bounded queue, in an order that matches the table.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::domain::NodeName;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Command, Judging, KnownAttempt, NodeEvent, NodeView, Nodes, SendError, judging::Queued,
};

/// Commands that wait for one node. Far above what one pass decides for a node; a full queue means
/// that the link stands still, and the next pass sends again.
const COMMANDS_MAX: usize = 256;

/// Why a session is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A newer supervisor of the same node has said Hello.
    Replaced,
    /// Nothing came for longer than the node lease.
    Silent,
}

/// One open session in the table.
#[derive(Debug)]
struct Entry {
    serial: u64,
    view: NodeView,
    commands: mpsc::Sender<Queued>,
    ending: watch::Sender<Option<Ending>>,
    /// When something last came; none while this process itself is slow to take it.
    heard: Option<Instant>,
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<NodeName, Entry>,
    serial: u64,
}

/// The connected nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    table: Arc<Mutex<Table>>,
    events: mpsc::Sender<NodeEvent>,
}

/// What the gRPC edge holds while a session is open. Close it with [`Sessions::close`].
#[derive(Debug)]
pub struct Session {
    node: NodeName,
    serial: u64,
    /// Commands for the node, and from where on permits may go beside them.
    pub commands: mpsc::Receiver<Queued>,
    /// Set when the session has to end.
    pub ending: watch::Receiver<Option<Ending>>,
}

/// The receiving side of the events is gone: the process is ending.
#[derive(Debug, thiserror::Error)]
#[error("nobody takes the events of nodes any more")]
pub struct EventsClosed;

/// Names a session after it has been taken apart.
#[derive(Clone, Debug)]
pub struct SessionId {
    node: NodeName,
    serial: u64,
}

impl Session {
    /// The session's name.
    pub fn id(&self) -> SessionId {
        SessionId { node: self.node.clone(), serial: self.serial }
    }
}

impl Sessions {
    /// An empty table that tells `events` what happens.
    pub fn new(events: mpsc::Sender<NodeEvent>) -> Self {
        Self { table: Arc::default(), events }
    }

    /// Enters a session, ends an older one of the same node, and announces the node.
    pub async fn open(
        &self,
        view: NodeView,
        known: Vec<KnownAttempt>,
        now: Instant,
    ) -> Result<Session, EventsClosed> {
        // Reserved first, so that table and queue change under one lock and keep one order.
        let permit = self.events.reserve().await.map_err(|_| EventsClosed)?;
        let (commands, queue) = mpsc::channel(COMMANDS_MAX + 1);
        let judging = Judging::new(known.len(), commands.clone().try_reserve_owned().ok());
        let (ending, ended) = watch::channel(None);
        let mut table = self.lock();
        table.serial += 1;
        let serial = table.serial;
        let node = view.name.clone();
        let entry = Entry { serial, view: view.clone(), commands, ending, heard: Some(now) };
        if let Some(older) = table.sessions.insert(node.clone(), entry) {
            older.ending.send_replace(Some(Ending::Replaced));
        }
        permit.send(NodeEvent::Connected { node: view, known, judging });
        Ok(Session { node, serial, commands: queue, ending: ended })
    }

    /// Takes a session out and announces it, unless a newer one has its place.
    pub async fn close(&self, id: &SessionId) {
        let permit = self.events.reserve().await;
        let mut table = self.lock();
        if table.sessions.get(&id.node).is_some_and(|entry| entry.serial == id.serial) {
            table.sessions.remove(&id.node);
            // Without a receiver the process is ending and nobody needs to know.
            if let Ok(permit) = permit {
                permit.send(NodeEvent::Disconnected { node: id.node.clone() });
            }
        }
    }

    /// Passes on what a node said. Events of a session that has been replaced are dropped: the newer
    /// one repeats what still holds.
    pub async fn announce(&self, id: &SessionId, event: NodeEvent) -> Result<(), EventsClosed> {
        let permit = self.events.reserve().await.map_err(|_| EventsClosed)?;
        let table = self.lock();
        if table.sessions.get(&id.node).is_some_and(|entry| entry.serial == id.serial) {
            permit.send(event);
        }
        Ok(())
    }

    /// Notes that something came from the node; `None` while we are the ones who are slow.
    pub fn heard(&self, id: &SessionId, at: Option<Instant>) {
        self.update(id, |entry| entry.heard = at);
    }

    /// Notes how many attempts are live on the node.
    pub fn running(&self, id: &SessionId, running: u32) {
        self.update(id, |entry| entry.view.running = running);
    }

    /// Ends the sessions that have been silent for longer than `lease`.
    pub fn end_silent(&self, lease: Duration, now: Instant) -> Vec<NodeName> {
        let table = self.lock();
        let silent = |entry: &&Entry| {
            entry.heard.is_some_and(|at| now.saturating_duration_since(at) > lease)
        };
        table
            .sessions
            .values()
            .filter(silent)
            .map(|entry| {
                entry.ending.send_replace(Some(Ending::Silent));
                entry.view.name.clone()
            })
            .collect()
    }

    /// Whether the node has a session.
    pub fn has(&self, node: &NodeName) -> bool {
        self.lock().sessions.contains_key(node)
    }

    /// How many sessions are open.
    pub fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Room on all connected nodes, and how much of it is taken.
    pub fn slots(&self) -> (u64, u64) {
        let table = self.lock();
        table.sessions.values().fold((0, 0), |(all, used), entry| {
            (all + u64::from(entry.view.slots), used + u64::from(entry.view.running))
        })
    }

    fn update(&self, id: &SessionId, change: impl FnOnce(&mut Entry)) {
        let mut table = self.lock();
        if let Some(entry) = table.sessions.get_mut(&id.node)
            && entry.serial == id.serial
        {
            change(entry);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is one insert or remove, so a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nodes for Sessions {
    fn snapshot(&self) -> Vec<NodeView> {
        self.lock().sessions.values().map(|entry| entry.view.clone()).collect()
    }

    fn send(&self, node: &NodeName, command: Command) -> Result<(), SendError> {
        let table = self.lock();
        let entry =
            table.sessions.get(node).ok_or_else(|| SendError::NotConnected(node.clone()))?;
        entry.commands.try_send(Queued::Command(command)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Congested(node.clone()),
            mpsc::error::TrySendError::Closed(_) => SendError::NotConnected(node.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, Epoch, RunKey, RunPhase, RunRef};

    use super::*;
    use crate::clock;

    fn view(instance: &str) -> NodeView {
        NodeView {
            name: "n1".into(),
            instance: instance.into(),
            boot: "b".into(),
            slots: 2,
            running: 0,
            highest_epoch: Epoch(1),
            runner_delivery: "imageVolume".into(),
            asks_preflights: true,
            holds: true,
        }
    }

    fn forget() -> Command {
        Command::Forget { run: RunKey { uid: "u".into(), attempt: Attempt(1) } }
    }

    fn sessions() -> (Sessions, mpsc::Receiver<NodeEvent>) {
        let (events, received) = mpsc::channel(16);
        (Sessions::new(events), received)
    }

    fn names(events: &mut mpsc::Receiver<NodeEvent>) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(event) = events.try_recv() {
            names.push(match event {
                NodeEvent::Connected { node, .. } => format!("connected {}", node.instance),
                NodeEvent::Disconnected { node } => format!("disconnected {node}"),
                other => format!("{other:?}"),
            });
        }
        names
    }

    #[tokio::test]
    async fn a_newer_supervisor_takes_the_place_of_the_older_and_is_not_disconnected_by_its_end() {
        let (sessions, mut events) = sessions();
        let old = sessions.open(view("old"), vec![], clock::instant()).await.unwrap();
        let mut new = sessions.open(view("new"), vec![], clock::instant()).await.unwrap();
        assert_eq!(*old.ending.borrow(), Some(Ending::Replaced));
        sessions
            .announce(&old.id(), NodeEvent::Disconnected { node: "late".into() })
            .await
            .unwrap();
        sessions.close(&old.id()).await;
        assert_eq!(names(&mut events), ["connected old", "connected new"]);
        sessions.send(&"n1".into(), forget()).unwrap();
        assert!(new.commands.try_recv().is_ok());
        sessions.close(&new.id()).await;
        assert_eq!(names(&mut events), ["disconnected n1"]);
        assert!(sessions.snapshot().is_empty());
    }

    #[tokio::test]
    async fn commands_beyond_the_queue_and_to_strangers_are_refused() {
        let (sessions, _events) = sessions();
        let node = NodeName::from("n1");
        assert_eq!(sessions.send(&node, forget()), Err(SendError::NotConnected(node.clone())));
        let session = sessions.open(view("a"), vec![], clock::instant()).await.unwrap();
        for _ in 0..COMMANDS_MAX {
            sessions.send(&node, forget()).unwrap();
        }
        assert_eq!(sessions.send(&node, forget()), Err(SendError::Congested(node.clone())));
        drop(session);
        assert_eq!(sessions.send(&node, forget()), Err(SendError::NotConnected(node)));
    }

    fn known(uid: &str) -> KnownAttempt {
        KnownAttempt {
            run: RunRef { namespace: "ns".into(), name: uid.into(), uid: uid.into() },
            attempt: Attempt(1),
            epoch: Epoch(1),
            phase: RunPhase::Running,
        }
    }

    #[tokio::test]
    async fn what_lets_permits_out_comes_behind_the_last_verdict_and_finds_room_in_a_full_queue() {
        let (sessions, mut events) = sessions();
        let all = vec![known("a"), known("b")];
        let mut session = sessions.open(view("a"), all, clock::instant()).await.unwrap();
        let Some(NodeEvent::Connected { judging, .. }) = events.recv().await else { panic!() };
        judging.one_judged();
        judging.one_judged();
        while sessions.send(&"n1".into(), forget()).is_ok() {}
        judging.one_judged();
        for _ in 0..COMMANDS_MAX {
            assert!(matches!(session.commands.try_recv(), Ok(Queued::Command(_))));
        }
        assert!(matches!(session.commands.try_recv(), Ok(Queued::Judged)));
        assert!(session.commands.try_recv().is_err());
    }

    #[tokio::test]
    async fn verdicts_on_a_session_that_was_replaced_let_no_permit_out_of_the_next() {
        let (sessions, mut events) = sessions();
        let _old = sessions.open(view("old"), vec![], clock::instant()).await.unwrap();
        let Some(NodeEvent::Connected { judging, .. }) = events.recv().await else { panic!() };
        let all = vec![known("a")];
        let mut new = sessions.open(view("new"), all, clock::instant()).await.unwrap();
        judging.one_judged();
        assert!(new.commands.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_silent_node_is_ended_not_one_that_waits_for_us() {
        let (sessions, _events) = sessions();
        let session = sessions.open(view("a"), vec![], clock::instant()).await.unwrap();
        let lease = Duration::from_secs(15);
        tokio::time::advance(lease).await;
        assert!(sessions.end_silent(lease, clock::instant()).is_empty());
        sessions.heard(&session.id(), None);
        tokio::time::advance(lease).await;
        assert!(sessions.end_silent(lease, clock::instant()).is_empty());
        sessions.heard(&session.id(), Some(clock::instant()));
        tokio::time::advance(lease + Duration::from_millis(1)).await;
        assert_eq!(sessions.end_silent(lease, clock::instant()), ["n1".into()]);
        assert_eq!(*session.ending.borrow(), Some(Ending::Silent));
    }
}
