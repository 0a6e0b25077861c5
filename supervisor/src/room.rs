//! What a file system has room for.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};

/// Bytes written at once where space cannot be allocated without writing.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Free inodes below which a disk counts as full: what one more step needs for its streams and its
/// repository. git keeps up to 100 objects of a push one by one (`receive.unpackLimit`), each perhaps in
/// a folder of its own.
pub const INODES_MIN: u64 = 512;

/// What is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Files and folders that can still be made; `u64::MAX` where the file system does not count them.
    pub inodes: u64,
}

impl Room {
    /// Room without a limit.
    pub const ENDLESS: Self = Self { bytes: u64::MAX, inodes: u64::MAX };

    /// What is free on the disk of `directory`; without a limit where there is no such directory yet.
    pub fn of(directory: &Path) -> io::Result<Self> {
        match statvfs(directory) {
            Ok(disk) => Ok(Self {
                bytes: disk.blocks_available().saturating_mul(disk.fragment_size()),
                // btrfs, for one, makes inodes as it needs them, and says 0 of 0.
                inodes: if disk.files() == 0 { u64::MAX } else { disk.files_available() },
            }),
            Err(Errno::ENOENT) => Ok(Self::ENDLESS),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes the file, which was just opened, `bytes` long with all of them allocated, so that writing over them
/// needs no room. Zeros are written and synced only where the file system cannot allocate: what is merely
/// written gets its blocks later.
pub fn allocate(file: &mut File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).unwrap_or(i64::MAX);
    match fallocate(&*file, FallocateFlags::empty(), 0, length) {
        Err(Errno::EOPNOTSUPP) => fill(file, bytes),
        done => done.map_err(io::Error::from),
    }
}

fn fill(file: &mut File, bytes: u64) -> io::Result<()> {
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let part = left.min(ZEROS.len());
        file.write_all(&ZEROS[..part])?;
        left -= part;
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_tells_its_room_and_a_folder_that_is_not_there_has_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::of(dir.path()).unwrap();
        assert!(room.bytes > 0 && room.inodes > 0, "{room:?}");
        assert_eq!(Room::of(&dir.path().join("none")).unwrap(), Room::ENDLESS);
    }
}
