//! The container runtime's own record of starts and ends: lines of `ctr events`.

use jiff::Timestamp;
use serde_json::Value;

/// One line: time (date, time, zone, zone name), namespace, topic, body.
#[derive(Clone, Debug)]
pub struct RuntimeEvent {
    /// When the runtime told it; none where the line's time is not understood.
    pub at: Option<Timestamp>,
    /// Kind, for example `/tasks/exit`.
    pub topic: String,
    /// What it says.
    pub body: Value,
}

/// What happened to a container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It was started.
    Started,
    /// It ended, at the time that the runtime saw, with this status.
    Ended(Option<Timestamp>, i32),
}

impl RuntimeEvent {
    /// Reads a line; none when it is no event.
    pub fn parse(line: &str) -> Option<Self> {
        let (head, body) = line.split_once(" {")?;
        let body = serde_json::from_str(&format!("{{{body}")).ok()?;
        let mut words = head.split_whitespace();
        let (date, time) = (words.next()?, words.next()?);
        let topic = words.last()?.to_owned();
        Some(Self { at: format!("{date}T{time}Z").parse().ok(), topic, body })
    }

    /// Id of the container; empty where the event is about none.
    pub fn container(&self) -> &str {
        let id = self.body["container_id"].as_str().or_else(|| self.body["id"].as_str());
        id.unwrap_or_default()
    }

    /// Start or end of the container itself; commands that are run in it end with an id of their own.
    pub fn moment(&self) -> Option<Moment> {
        match self.topic.as_str() {
            "/tasks/start" => Some(Moment::Started),
            "/tasks/exit" if self.body["id"] == self.body["container_id"] => {
                // Zero is left out.
                let status = self.body["exit_status"].as_i64().unwrap_or_default();
                Some(Moment::Ended(self.exited_at(), i32::try_from(status).ok()?))
            }
            _ => None,
        }
    }

    fn exited_at(&self) -> Option<Timestamp> {
        let time = &self.body["exited_at"];
        let nanos = time["nanos"].as_i64().unwrap_or_default();
        Timestamp::new(time["seconds"].as_i64()?, i32::try_from(nanos).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_and_an_end_are_understood_and_a_command_in_the_container_is_neither() {
        let start = "2026-11-28 10:11:18.5 +0000 UTC k8s.io /tasks/start {\"container_id\":\"c\",\"pid\":7}";
        let start = RuntimeEvent::parse(start).unwrap();
        assert_eq!((start.container(), start.moment()), ("c", Some(Moment::Started)));
        assert_eq!(start.at.unwrap().to_string(), "2026-11-28T10:11:18.5Z");
        let exit = "2026-11-28 10:11:19 +0000 UTC k8s.io /tasks/exit {\"container_id\":\"c\",\"id\":\"c\",\"pid\":7,\
                    \"exit_status\":137,\"exited_at\":{\"seconds\":1800000000,\"nanos\":5}}";
        let at = Timestamp::new(1_800_000_000, 5).unwrap();
        let ended = RuntimeEvent::parse(exit).unwrap().moment();
        assert_eq!(ended, Some(Moment::Ended(Some(at), 137)));
        let of_a_command = exit.replace("\"id\":\"c\"", "\"id\":\"d\"");
        assert_eq!(RuntimeEvent::parse(&of_a_command).unwrap().moment(), None);
        assert!(RuntimeEvent::parse("ctr: connection lost").is_none());
    }
}
