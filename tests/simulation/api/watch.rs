//! The log of changes as a stream of lines.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    call::Call,
    selector::Selector,
    server::{ApiServer, Link, Passage},
    store::Change,
};

/// A watch that names no limit ends after this time.
const DEFAULT_SECONDS: u64 = 1800;

/// Feeds one watch until it ends: by its time limit, with its client, or for being too late.
pub(super) async fn feed(server: ApiServer, call: Call, lines: mpsc::Sender<Bytes>) {
    let selector = Selector::of(&call);
    let limit = Duration::from_secs(call.number("timeoutSeconds").unwrap_or(DEFAULT_SECONDS));
    let end = Instant::now() + limit;
    let mut changed = server.changed();
    let asked = call.number("resourceVersion").filter(|version| *version > 0);
    let mut seen = asked.unwrap_or_else(|| server.with(|store| store.version()));
    if asked.is_none() {
        let present: Vec<_> = server.with(|store| store.all(call.kind).cloned().collect());
        for object in present.iter().filter(|object| selector.matches(object)) {
            if lines.send(line("ADDED", object)).await.is_err() {
                return;
            }
        }
    }
    loop {
        let news =
            server.with(|store| (!store.is_too_old(seen)).then(|| store.since(seen).to_vec()));
        let Some(news) = news else {
            let message = format!("too old resource version: {seen}");
            let status = super::server::status(410, "Expired", &message);
            let _ = lines.send(line("ERROR", &status)).await;
            return;
        };
        for change in news {
            seen = change.version;
            let Some(line) = event(&change, &call, &selector) else { continue };
            let arrives = async {
                server.let_through(&call).await;
                server.reach(&call.client).await
            };
            let reached = tokio::select! {
                reached = arrives => reached,
                () = lines.closed() => false,
            };
            if !reached {
                return;
            }
            server.network().delay_of_event(&call.client).await;
            let times = match server.network().passage_of_event(&call.client) {
                Passage::Once => 1,
                Passage::Twice => 2,
                Passage::Broken => return,
            };
            for line in std::iter::repeat_n(line, times) {
                if lines.send(line).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = lines.closed() => return,
            () = tokio::time::sleep_until(end) => {
                let version = json!({"resourceVersion": seen.to_string(), "creationTimestamp": null});
                let bookmark = json!({"apiVersion": call.kind.api_version(), "kind": call.kind.kind,
                    "metadata": version, "spec": {}});
                if call.query.get("allowWatchBookmarks").is_some_and(|value| value == "true")
                    && server.network().link(&call.client) == Link::Up
                {
                    let _ = lines.send(self::line("BOOKMARK", &bookmark)).await;
                }
                return;
            }
        }
    }
}

/// What a watch with this selector is told of a change.
fn event(change: &Change, call: &Call, selector: &Selector) -> Option<Bytes> {
    if change.key.0 != call.kind.plural {
        return None;
    }
    let before = change.before.as_ref().filter(|object| selector.matches(object));
    let after = change.after.as_ref().filter(|object| selector.matches(object));
    match (before, after) {
        (None, Some(after)) => Some(line("ADDED", after)),
        (Some(_), Some(after)) => Some(line("MODIFIED", after)),
        (Some(before), None) => {
            let mut last = change.after.clone().unwrap_or_else(|| before.clone());
            last["metadata"]["resourceVersion"] = json!(change.version.to_string());
            Some(line("DELETED", &last))
        }
        (None, None) => None,
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    Bytes::from(text)
}
