//! Landlock: which files a child may write, which ports it may use, whom it may signal.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::{ConfineError, Walls};

/// The newest ABI whose rights we have looked at: 6 brought the scopes, 7 only logging. Older
/// kernels enforce what they know of it.
const LOOKED_AT: ABI = ABI::V7;
/// Devices such as `/dev/null` and `/dev/shm`; the container's runtime has chosen them.
const DEVICES: &str = "/dev";

/// Restricts this process and its children to come; returns the ABI in force, if any.
pub(super) fn restrict(walls: &Walls) -> Result<Option<i32>, ConfineError> {
    let status = enforce(walls).map_err(|error| ConfineError::Ruleset(error.to_string()))?;
    Ok(match (status.ruleset, status.landlock) {
        (
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced,
            LandlockStatus::Available { effective_abi, .. },
        ) => Some((effective_abi as i32).min(LOOKED_AT as i32)),
        (_, _) => None,
    })
}

/// Why there is no ruleset: the crate's words for a rule, or a folder that cannot be opened.
#[derive(Debug, thiserror::Error)]
enum RulesetFailure {
    #[error(transparent)]
    Rules(#[from] landlock::RulesetError),
    #[error(transparent)]
    Folder(#[from] landlock::PathFdError),
}

fn enforce(walls: &Walls) -> Result<RestrictionStatus, RulesetFailure> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LOOKED_AT))?
        .scope(Scope::from_all(LOOKED_AT))?;
    if walls.only_port.is_some() {
        ruleset = ruleset.handle_access(AccessNet::from_all(LOOKED_AT))?;
    }
    let mut created = ruleset.create()?;
    // Nothing in an image or in /proc is a secret here: PID 1 is closed to its own user.
    created = created.add_rule(beneath(Path::new("/"), AccessFs::from_read(LOOKED_AT))?)?;
    // /proc stays read-only: who may write there can make the runner the kernel's first victim.
    let folders = walls.writable.iter().map(std::path::PathBuf::as_path);
    for folder in folders.chain([Path::new(DEVICES)]) {
        created = created.add_rule(beneath(folder, AccessFs::from_all(LOOKED_AT))?)?;
    }
    if let Some(port) = walls.only_port {
        created = created.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    Ok(created.restrict_self()?)
}

fn beneath(
    folder: &Path,
    access: BitFlags<AccessFs>,
) -> Result<PathBeneath<PathFd>, landlock::PathFdError> {
    Ok(PathBeneath::new(PathFd::new(folder)?, access))
}
