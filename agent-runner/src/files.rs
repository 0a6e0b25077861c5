//! Files that the agent can write: read without following links, without blocking, with a limit.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::OFlag;

/// Reads at most `max` bytes of the regular file at `path`, bad UTF-8 replaced. A link could lead
/// to PID 1's own files, and a pipe would block for ever.
pub(crate) fn read_bounded(path: &Path, max: u64) -> io::Result<String> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Copies the executable `from` into the folder `to`, complete or not at all.
pub(crate) fn install(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let temporary = to.join(format!(".{name}.tmp"));
    fs::copy(from, &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, to.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_only_so_far() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "hello").unwrap();
        assert_eq!(read_bounded(&file, 4).unwrap(), "hell");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(read_bounded(&link, 4).is_err());
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_bounded(&pipe, 4).is_err());
        assert!(read_bounded(folder.path(), 4).is_err());
    }

    #[test]
    fn an_installed_file_is_executable() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::write(&from, "x").unwrap();
        install(&from, folder.path(), "to").unwrap();
        let mode = fs::metadata(folder.path().join("to")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
