use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32},
    },
};

use super::*;
use crate::{testing::Fixture, workspace::tests::cloned};
use agent_operator::domain::Reason;

/// A gateway whose pod is replaced in the middle of the first git call: that one is never answered,
/// and neither are some questions for its health.
#[derive(Default)]
struct Replaced {
    transfers: AtomicU32,
    away: AtomicBool,
    unanswered: AtomicU32,
}

impl Replaced {
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gateway = Arc::<Self>::default();
        let shared = Arc::clone(&gateway);
        thread::spawn(move || {
            // Kept open: a dead peer sends no end.
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                silent.extend(shared.serve(stream.unwrap()));
            }
        });
        (gateway, url)
    }

    /// Answers one request; gives the connection back when it is to hang.
    fn serve(&self, mut stream: TcpStream) -> Option<TcpStream> {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let request = lines.next()?.ok()?;
        while lines.next()?.is_ok_and(|line| !line.is_empty()) {}
        let answer = if request.contains("/healthz") {
            if self.away.load(Ordering::SeqCst) {
                // As many as make an absence, then the new one is there.
                if self.unanswered.fetch_add(1, Ordering::SeqCst) + 1 >= UNANSWERED_MIN {
                    self.away.store(false, Ordering::SeqCst);
                }
                return None;
            }
            "200 OK"
        } else if self.transfers.fetch_add(1, Ordering::SeqCst) == 0 {
            self.away.store(true, Ordering::SeqCst);
            return Some(stream);
        } else {
            "403 Forbidden"
        };
        let head = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        None
    }
}

fn with_gateway(url: &str) -> (Fixture, Workspace) {
    let (mut fixture, mut workspace) = cloned();
    fixture.client = Client::new(url);
    workspace.url = format!("{url}/git/main.git");
    (fixture, workspace)
}

#[test]
fn a_push_that_outlives_its_gateway_is_begun_anew_at_the_next_one() {
    let (gateway, url) = Replaced::start();
    let (fixture, workspace) = with_gateway(&url);
    let failure = workspace.push(&fixture.context()).unwrap_err();
    assert_eq!(gateway.transfers.load(Ordering::SeqCst), 2);
    assert_eq!(gateway.unanswered.load(Ordering::SeqCst), UNANSWERED_MIN);
    // The second one had an answer, and that is final.
    assert_eq!(failure.reason, Reason::PushRefused);
    assert!(failure.message.contains("403"), "{}", failure.message);
}

#[test]
fn a_gateway_that_stays_away_is_no_refusal() {
    assert!(gone().is_transient());
    assert!(gone().last_words().contains("no answer for 60 s"));
}
