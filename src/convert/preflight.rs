//! Preflight orders and reports. The order's credentials travel beside it and are converted by the
//! edges.

use crate::{
    domain::{
        PreflightKey, PreflightOrder, PreflightReport, TaskUid,
        limits::MESSAGE_BYTES_MAX,
        preflight::Finding,
        text::{printable, truncate},
    },
    proto::v1,
};

use super::{ConvertError, epoch, list, name, required, text};

/// Most findings and notes that are taken over: each check makes one of either.
const ENTRIES_MAX: usize = 8;

impl TryFrom<v1::PreflightKey> for PreflightKey {
    type Error = ConvertError;

    fn try_from(wire: v1::PreflightKey) -> Result<Self, Self::Error> {
        Ok(Self {
            task: TaskUid::from(text("task_uid", wire.task_uid)?),
            generation: wire.generation,
            epoch: epoch("epoch", wire.epoch)?,
            serial: wire.serial,
        })
    }
}

impl From<&PreflightKey> for v1::PreflightKey {
    fn from(key: &PreflightKey) -> Self {
        Self {
            task_uid: key.task.as_str().to_owned(),
            generation: key.generation,
            epoch: key.epoch.0,
            serial: key.serial,
        }
    }
}

impl TryFrom<v1::PreflightOrder> for PreflightOrder {
    type Error = ConvertError;

    fn try_from(wire: v1::PreflightOrder) -> Result<Self, Self::Error> {
        Ok(Self {
            key: required("key", wire.key)?,
            namespace: text("namespace", wire.namespace)?,
            task: required("task", wire.task)?,
            repository: required("repository", wire.repository)?,
            needs_test_command: wire.needs_test_command,
            needs_model: wire.needs_model,
        })
    }
}

impl From<&PreflightOrder> for v1::PreflightOrder {
    fn from(order: &PreflightOrder) -> Self {
        Self {
            key: Some((&order.key).into()),
            namespace: order.namespace.clone(),
            task: Some((&order.task).into()),
            repository: Some((&order.repository).into()),
            needs_test_command: order.needs_test_command,
            needs_model: order.needs_model,
            credentials: Vec::new(),
        }
    }
}

impl TryFrom<v1::PreflightFinding> for Finding {
    type Error = ConvertError;

    fn try_from(wire: v1::PreflightFinding) -> Result<Self, Self::Error> {
        Ok(Self { problem: name("problem", &wire.problem)?, message: bounded(&wire.message) })
    }
}

impl TryFrom<v1::PreflightReport> for PreflightReport {
    type Error = ConvertError;

    fn try_from(mut wire: v1::PreflightReport) -> Result<Self, Self::Error> {
        wire.findings.truncate(ENTRIES_MAX);
        Ok(Self {
            key: required("key", wire.key)?,
            findings: list("findings", wire.findings)?,
            notes: wire.notes.iter().take(ENTRIES_MAX).map(|note| bounded(note)).collect(),
        })
    }
}

impl From<&PreflightReport> for v1::PreflightReport {
    fn from(report: &PreflightReport) -> Self {
        let finding = |finding: &Finding| v1::PreflightFinding {
            problem: finding.problem.as_str().to_owned(),
            message: finding.message.clone(),
        };
        Self {
            key: Some((&report.key).into()),
            findings: report.findings.iter().map(finding).collect(),
            notes: report.notes.clone(),
        }
    }
}

fn bounded(message: &str) -> String {
    truncate(&printable(message), MESSAGE_BYTES_MAX).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, TaskRef, assignment::Repository, preflight::Problem};

    fn key() -> PreflightKey {
        PreflightKey { task: TaskUid::from("uid"), generation: 2, epoch: Epoch(3), serial: 4 }
    }

    #[test]
    fn an_order_and_its_report_survive_the_wire() {
        let order = PreflightOrder {
            key: key(),
            namespace: "agent-system".to_owned(),
            task: TaskRef { name: "task".to_owned(), uid: TaskUid::from("uid") },
            repository: Repository {
                name: "main".to_owned(),
                url: "https://github.com/o/r.git".to_owned(),
                base_branch: "main".to_owned(),
                work_branch: "ai/task".to_owned(),
                base_commit: None,
                head_commit: None,
            },
            needs_test_command: true,
            needs_model: false,
        };
        assert_eq!(PreflightOrder::try_from(v1::PreflightOrder::from(&order)).unwrap(), order);
        let finding = |&problem: &Problem| Finding { problem, message: "said so".to_owned() };
        for findings in Problem::ALL.chunks(ENTRIES_MAX) {
            let report = PreflightReport {
                key: key(),
                findings: findings.iter().map(finding).collect(),
                notes: vec!["main is at abc".to_owned()],
            };
            assert_eq!(
                PreflightReport::try_from(v1::PreflightReport::from(&report)).unwrap(),
                report
            );
        }
    }

    #[test]
    fn a_problem_that_this_version_does_not_know_is_named() {
        let wire = v1::PreflightReport {
            key: Some((&key()).into()),
            findings: vec![v1::PreflightFinding {
                problem: "MoonPhase".to_owned(),
                message: String::new(),
            }],
            notes: Vec::new(),
        };
        let error = PreflightReport::try_from(wire).unwrap_err();
        assert_eq!(error.field, "findings[0].problem");
    }
}
