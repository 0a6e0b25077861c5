//! Credentials.

use crate::{
    domain::{Credential, Secret},
    proto::v1,
};

use super::{ConvertError, text};

impl TryFrom<v1::Credential> for Credential {
    type Error = ConvertError;

    fn try_from(wire: v1::Credential) -> Result<Self, Self::Error> {
        Ok(Self {
            id: text("id", wire.id)?,
            purpose: text("purpose", wire.purpose)?,
            host: text("host", wire.host)?,
            scheme: text("scheme", wire.scheme)?,
            value: Secret::new(text("value", wire.value)?),
        })
    }
}

impl From<&Credential> for v1::Credential {
    fn from(credential: &Credential) -> Self {
        Self {
            id: credential.id.clone(),
            purpose: credential.purpose.clone(),
            host: credential.host.clone(),
            scheme: credential.scheme.clone(),
            value: credential.value.expose().to_owned(),
        }
    }
}
