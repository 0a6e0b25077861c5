//! Names of traces and spans, computed from what everybody knows of a task or a run. Controller,
//! supervisors and gateways agree on them without passing anything on, and so does a person: the
//! trace of a task is its uid without dashes.

use opentelemetry::trace::{SpanId, TraceId};

use crate::domain::{RunUid, TaskUid, names::sha256_hex};

/// Hexadecimal digits of a trace's name.
const TRACE_DIGITS: usize = 32;
/// Hexadecimal digits of a span's name.
const SPAN_DIGITS: usize = 16;

/// The trace of a task: the 128 bits of its uid. A uid of another form gives its hash.
pub fn trace_of(task: &TaskUid) -> TraceId {
    let digits: String = task.as_str().chars().filter(|c| *c != '-').collect();
    let hexadecimal = digits.len() == TRACE_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let of_uid = hexadecimal.then(|| TraceId::from_hex(&digits).ok()).flatten();
    of_uid.filter(|id| *id != TraceId::INVALID).unwrap_or_else(|| {
        let hash = sha256_hex(task.as_str().as_bytes());
        TraceId::from_hex(&hash[..TRACE_DIGITS]).expect("a hash is hexadecimal")
    })
}

/// The span of a whole task.
pub fn span_of_task(task: &TaskUid) -> SpanId {
    span("task", task.as_str())
}

/// The span of a run, the parent of everything that is done for it.
pub fn span_of_run(run: &RunUid) -> SpanId {
    span("run", run.as_str())
}

/// The span of a part of a run that is there once, such as `start`.
pub fn span_of_part(run: &RunUid, part: &str) -> SpanId {
    span(part, run.as_str())
}

/// The span of a part of a run that is there often; `number` tells them apart.
pub fn span_of_nth(run: &RunUid, part: &str, number: u64) -> SpanId {
    span(&format!("{part} {number}"), run.as_str())
}

fn span(kind: &str, uid: &str) -> SpanId {
    let hash = sha256_hex(format!("{kind} {uid}").as_bytes());
    SpanId::from_hex(&hash[..SPAN_DIGITS]).expect("a hash is hexadecimal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_found_by_the_uid_of_its_task() {
        let task = TaskUid::from("3b8ac5f6-221f-4ac3-9dce-522de22f6f1b");
        assert_eq!(trace_of(&task).to_string(), "3b8ac5f6221f4ac39dce522de22f6f1b");
    }

    #[test]
    fn every_uid_has_a_trace_of_its_own() {
        let odd = [
            "",
            "uid-a",
            "uid-b",
            "00000000-0000-0000-0000-000000000000",
            "+3b8ac5f6221f4ac39dce522de22f6f1",
        ];
        let mut seen = std::collections::HashSet::new();
        for uid in odd {
            let trace = trace_of(&TaskUid::from(uid));
            assert_ne!(trace, TraceId::INVALID, "{uid}");
            assert!(seen.insert(trace), "{uid}");
        }
    }

    #[test]
    fn spans_of_one_run_differ_and_stay_the_same() {
        let run = RunUid::from("22b00551-0000-4000-8000-000000000001");
        let spans = [
            span_of_task(&TaskUid::from(run.as_str())),
            span_of_run(&run),
            span_of_part(&run, "start"),
            span_of_nth(&run, "model call", 1),
            span_of_nth(&run, "model call", 2),
        ];
        let distinct: std::collections::HashSet<_> = spans.iter().collect();
        assert_eq!(distinct.len(), spans.len());
        assert_eq!(span_of_run(&run), span_of_run(&RunUid::from(run.as_str())));
    }
}
