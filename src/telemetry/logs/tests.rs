use std::sync::{Arc, Mutex};

use super::*;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `work` logs under `filter`.
fn text(filter: &str, work: impl FnOnce()) -> String {
    let kept = Kept::default();
    let writer = kept.clone();
    let subscriber = json_to(filter, move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
}

/// The lines that `work` logs under `filter`.
fn lines(filter: &str, work: impl FnOnce()) -> Vec<Value> {
    text(filter, work).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn context() -> Span {
    let at = RunRef { namespace: "agents".into(), name: "a-plan-1".into(), uid: "u".into() };
    run(&at, "plan", "a", &TaskUid::from("3b8ac5f6-221f-4ac3-9dce-522de22f6f1b"))
}

#[test]
fn a_line_carries_task_and_run_of_its_context_beside_its_own_fields() {
    let lines = lines("info", || {
        let _context = context().entered();
        tracing::warn!(bytes = 5, error = %"broken \"pipe\"\n", done = true, "could not read");
    });
    assert_eq!(lines.len(), 1);
    let expected: [(&str, Value); 10] = [
        ("level", "WARN".into()),
        ("message", "could not read".into()),
        ("namespace", "agents".into()),
        ("task", "a".into()),
        ("run", "a-plan-1".into()),
        ("step", "plan".into()),
        ("trace_id", "3b8ac5f6221f4ac39dce522de22f6f1b".into()),
        ("bytes", 5.into()),
        ("error", "broken \"pipe\"\n".into()),
        ("done", true.into()),
    ];
    for (name, value) in expected {
        assert_eq!(lines[0][name], value, "{name}");
    }
}

#[test]
fn of_two_fields_with_one_name_the_inner_one_stands_and_stands_once() {
    let text = text("info", || {
        let _context = context().entered();
        let _inner = tracing::error_span!("inner", step = "test").entered();
        tracing::info!(task = "b", level = "mine", "said");
    });
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&line["task"], &line["step"]), (&"b".into(), &"test".into()));
    assert_eq!(line["level"], "INFO", "the line's own level stays");
    for name in ["\"task\":", "\"step\":", "\"level\":"] {
        assert_eq!(text.matches(name).count(), 1, "{name} in {text}");
    }
}

#[test]
fn a_filter_that_shows_errors_only_shows_their_context() {
    let lines = lines("error", || {
        let _context = context().entered();
        tracing::info!("hidden");
        tracing::error!("shown");
    });
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["run"], "a-plan-1");
}

#[test]
fn a_malformed_filter_is_refused_with_its_text() {
    let error = start(LogFormat::Text, "info,kube=loud").unwrap_err();
    assert!(error.to_string().contains("kube=loud"), "{error}");
}

#[test]
fn no_filter_leaves_out_the_audit() {
    for filter in ["error", "off", "info,audit=off", "warn,audit=error"] {
        let lines = lines(filter, || {
            tracing::info!(target: crate::telemetry::audit::TARGET, act = "refused", "refused");
            tracing::info!("something else");
        });
        let acts: Vec<_> = lines.iter().map(|line| line["act"].as_str()).collect();
        let others = usize::from(filter.starts_with("info"));
        assert_eq!(acts.iter().filter(|act| **act == Some("refused")).count(), 1, "{filter}");
        assert_eq!(acts.len(), 1 + others, "{filter}");
    }
}
