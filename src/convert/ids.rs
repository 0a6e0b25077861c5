//! Identifiers and references.

use crate::{
    domain::{Attempt, Epoch, RunKey, RunRef, TaskRef},
    proto::v1,
};

use super::{ConvertError, list, text};

/// An attempt number, from 1.
pub fn attempt(field: &str, value: u32) -> Result<Attempt, ConvertError> {
    if value == 0 { Err(ConvertError::missing(field)) } else { Ok(Attempt(value)) }
}

/// A term, from 1: no leader has ever been without one.
pub fn epoch(field: &str, value: u64) -> Result<Epoch, ConvertError> {
    if value == 0 { Err(ConvertError::missing(field)) } else { Ok(Epoch(value)) }
}

/// The keys in a list (`NeedCredentials.runs`).
pub fn run_keys(field: &str, keys: Vec<v1::RunKey>) -> Result<Vec<RunKey>, ConvertError> {
    list(field, keys)
}

impl TryFrom<v1::RunRef> for RunRef {
    type Error = ConvertError;

    fn try_from(wire: v1::RunRef) -> Result<Self, Self::Error> {
        Ok(Self {
            namespace: text("namespace", wire.namespace)?,
            name: text("name", wire.name)?,
            uid: text("uid", wire.uid)?.into(),
        })
    }
}

impl From<&RunRef> for v1::RunRef {
    fn from(run: &RunRef) -> Self {
        Self {
            namespace: run.namespace.clone(),
            name: run.name.clone(),
            uid: run.uid.as_str().to_owned(),
        }
    }
}

impl TryFrom<v1::TaskRef> for TaskRef {
    type Error = ConvertError;

    fn try_from(wire: v1::TaskRef) -> Result<Self, Self::Error> {
        Ok(Self { name: text("name", wire.name)?, uid: text("uid", wire.uid)?.into() })
    }
}

impl From<&TaskRef> for v1::TaskRef {
    fn from(task: &TaskRef) -> Self {
        Self { name: task.name.clone(), uid: task.uid.as_str().to_owned() }
    }
}

impl TryFrom<v1::RunKey> for RunKey {
    type Error = ConvertError;

    fn try_from(wire: v1::RunKey) -> Result<Self, Self::Error> {
        Ok(Self { uid: text("uid", wire.uid)?.into(), attempt: attempt("attempt", wire.attempt)? })
    }
}

impl From<&RunKey> for v1::RunKey {
    fn from(key: &RunKey) -> Self {
        Self { uid: key.uid.as_str().to_owned(), attempt: key.attempt.0 }
    }
}
