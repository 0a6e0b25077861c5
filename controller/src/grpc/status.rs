//! Errors as callers see them: one place that chooses the code.

use agent_operator::convert::ConvertError;
use tonic::Status;

use crate::streams::StoreError;

/// A message that makes no sense is the caller's fault, and the field is named.
pub(super) fn from_convert(error: &ConvertError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Errors of the stream store. Details of files stay in our log.
pub(super) fn from_store(error: &StoreError) -> Status {
    match error {
        StoreError::OutOfOrder { .. } => Status::out_of_range(error.to_string()),
        StoreError::BadUid(_) | StoreError::EmptyGap { .. } => {
            Status::invalid_argument(error.to_string())
        }
        StoreError::TooManyGaps => Status::resource_exhausted(error.to_string()),
        StoreError::Io { .. } => {
            tracing::error!(error = error as &dyn std::error::Error, "stream store failed");
            Status::internal("the stream store failed")
        }
    }
}
