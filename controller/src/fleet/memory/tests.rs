use std::time::Duration;

use agent_operator::domain::{Attempt, RunUid};

use super::*;
use crate::{
    clock,
    decide::{
        NodeFacts, Used,
        run::{Contact, contact_with},
    },
};

const LEASE: Duration = Duration::from_secs(15);

fn key(uid: &str) -> RunKey {
    RunKey { uid: RunUid::from(uid), attempt: Attempt(1) }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How a node stands that has no session, `seconds` after the beginning and at `now` by the wall.
fn contact(memory: &NodeMemory, began: Instant, seconds: u64, now: Timestamp) -> Contact {
    let name = NodeName::from("n1");
    let absent_since = Some(memory.absent_since(&name, began + secs(seconds), now));
    let node = NodeFacts {
        name,
        session: None,
        absent_since,
        exists: true,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        unschedulable: false,
        allocatable: None,
        used: Used::default(),
        fenced: None,
    };
    contact_with(Some(&node), LEASE, now)
}

#[test]
fn f17_a_step_of_the_wall_clock_neither_ends_a_nodes_lease_nor_stretches_it() {
    for step in [-3600, 0, 3600] {
        let (began, node) = (clock::instant(), NodeName::from("n1"));
        let memory = NodeMemory::new(began);
        memory.connected(&node, []);
        memory.disconnected(&node, began + secs(100));
        // It was the 100,100th second then; the clock is set before anybody looks.
        let wall = |seconds: i64| at(100_000 + seconds + step);
        let brief = contact(&memory, began, 101, wall(101));
        assert_eq!(brief, Contact::Brief(wall(115)), "away for a second, step {step}");
        let silent = contact(&memory, began, 115, wall(115));
        assert_eq!(silent, Contact::Silent, "away for the lease, step {step}");
    }
}

#[test]
fn f17_a_step_of_the_wall_clock_leaves_nodes_their_lease_to_find_a_new_leader() {
    for step in [-3600, 3600] {
        let began = clock::instant();
        let memory = NodeMemory::new(began);
        memory.new_term(began + secs(50));
        let wall = |seconds: i64| at(100_000 + seconds + step);
        assert_eq!(contact(&memory, began, 51, wall(51)), Contact::Brief(wall(65)));
        assert_eq!(contact(&memory, began, 65, wall(65)), Contact::Silent);
    }
}

#[test]
fn an_order_that_the_hello_does_not_name_counts_as_unsent() {
    let began = clock::instant();
    let (memory, node) = (NodeMemory::new(began), NodeName::from("n1"));
    memory.connected(&node, []);
    memory.sent(&node, &key("a"), Delivery::Sent);
    memory.sent(&node, &key("b"), Delivery::Sent);
    memory.disconnected(&node, began + secs(5));
    memory.connected(&node, [key("b")]);
    assert_eq!(memory.delivery(&node, &key("a")), Delivery::Unsent);
    assert_eq!(memory.delivery(&node, &key("b")), Delivery::Known);
}

#[test]
fn what_a_node_was_told_to_forget_is_told_again_over_its_next_session() {
    let (memory, node) = (NodeMemory::new(clock::instant()), NodeName::from("n1"));
    memory.forgotten(&node, &key("a"));
    memory.connected(&"n2".into(), []);
    assert_eq!(memory.delivery(&node, &key("a")), Delivery::Forgotten);
    memory.connected(&node, []);
    assert_eq!(memory.delivery(&node, &key("a")), Delivery::Unsent);
}

#[test]
fn a_new_term_confirms_everything_again() {
    let began = clock::instant();
    let (memory, node) = (NodeMemory::new(began), NodeName::from("n1"));
    memory.sent(&node, &key("a"), Delivery::CancelSent);
    memory.new_term(began + secs(1));
    assert_eq!(memory.delivery(&node, &key("a")), Delivery::Known);
}

#[test]
fn absence_begins_anew_with_a_term_so_that_nodes_can_find_the_new_leader() {
    let began = clock::instant();
    let (memory, node) = (NodeMemory::new(began + secs(10)), NodeName::from("n1"));
    memory.disconnected(&node, began + secs(15));
    memory.new_term(began + secs(4000));
    for node in [&node, &NodeName::from("never seen")] {
        assert_eq!(memory.absent_since(node, began + secs(4001), at(4001)), at(4000));
    }
    memory.connected(&node, []);
    memory.disconnected(&node, began + secs(4005));
    assert_eq!(memory.absent_since(&node, began + secs(4010), at(4010)), at(4005));
}

#[test]
fn absence_counts_from_the_first_loss_or_from_the_start() {
    let began = clock::instant();
    let (memory, node) = (NodeMemory::new(began + secs(10)), NodeName::from("n1"));
    assert_eq!(memory.absent_since(&node, began + secs(20), at(20)), at(10));
    memory.disconnected(&node, began + secs(15));
    memory.disconnected(&node, began + secs(18));
    assert_eq!(memory.absent_since(&node, began + secs(20), at(20)), at(15));
    memory.connected(&node, []);
    memory.disconnected(&node, began + secs(30));
    assert_eq!(memory.absent_since(&node, began + secs(40), at(40)), at(30));
}
