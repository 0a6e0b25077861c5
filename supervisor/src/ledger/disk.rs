//! What the ledger asks of the disk, behind a trait so that a full or failing one can be tested.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::room::{Room, allocate};

/// Writes of the ledger.
pub trait Disk: Send + std::fmt::Debug {
    /// Writes all of `bytes` at the file's position. May have written a part when it fails.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;

    /// Puts the file's content on disk.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Makes a file of `bytes` allocated bytes, or leaves it if it is there. Nothing stays when it
    /// fails.
    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Gives the space of such a file back.
    fn release(&self, path: &Path) -> io::Result<()>;

    /// Inodes that are free on the disk of `dir`.
    fn free_inodes(&self, dir: &Path) -> io::Result<u64>;
}

/// The file system.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        open_file(path).and_then(|mut file| allocate(&mut file, bytes)).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
    }

    fn release(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn free_inodes(&self, dir: &Path) -> io::Result<u64> {
        Room::of(dir).map(|room| room.inodes)
    }
}

/// Whether a write failed for want of space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Opens or makes a file that only this user reads.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes a new or renamed file survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all())
}
