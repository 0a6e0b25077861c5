//! No core dumps: a core is a copy of a process' memory, with every credential that it holds.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most bytes of a core. Not 0: where `core_pattern` pipes cores to a program of the node, the kernel
/// starts that program, as root and with all the memory of whoever crashed, whatever the limit is
/// (core(5), 'Piping core dumps to a program'). 1 is the one limit at which it does not
/// (`fs/coredump.c`, where the program's own crashes are told by it); no file is made of it either.
const CORE_BYTES: u64 = 1;

/// Forbids cores of this process, and of its children to come, which cannot allow them again.
pub fn forbid() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    let most = hard.min(CORE_BYTES);
    Ok(setrlimit(Resource::RLIMIT_CORE, most, most)?)
}
