//! Folders that fetches work in, and that none leaves behind.
//!
//! Whoever works in one holds a lock on it, which the system opens when the process ends, however it
//! ends. A folder that nobody holds is what an interrupted fetch left, and the next one removes it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use tempfile::TempDir;

/// How these folders are named.
const PREFIX: &str = ".fetch-";
/// How temporary files and folders were named that held no lock. Only their age tells.
const UNLOCKED_PREFIX: &str = ".tmp";
/// No fetch takes longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Each can only fail where another fetch cleans up between two system calls.
const ATTEMPTS: usize = 100;

/// Those of this process, for [`remove_temporaries`].
static OPEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A folder beside the files that are fetched; dropped, it is removed.
pub(super) struct WorkFolder {
    folder: TempDir,
    /// Held as long as the folder is.
    _lock: Option<File>,
}

impl WorkFolder {
    /// Makes one in `parent`.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            match lock(folder.path()) {
                // One who cleans up may have seen the folder before it was held, and removed it.
                Lock::Held(lock) if folder.path().is_dir() => {
                    OPEN.lock().push(folder.path().to_owned());
                    return Ok(Self { folder, _lock: lock });
                }
                Lock::Held(_) | Lock::Taken => {}
            }
        }
        Err(io::Error::other("other processes remove every new folder"))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        OPEN.lock().retain(|path| path != self.folder.path());
    }
}

/// Removes the temporary folders of all fetches that run in this process: for a program that is about
/// to end in the middle of one, as on Ctrl-C.
pub fn remove_temporaries() {
    for folder in &*OPEN.lock() {
        // What is left, the next fetch removes.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Removes what interrupted fetches left in `parent`. What cannot be removed does no harm there.
pub(super) fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(PREFIX) {
            if let Lock::Held(Some(_lock)) = lock(&path) {
                let _ = fs::remove_dir_all(&path);
            }
        } else if name.starts_with(UNLOCKED_PREFIX) && is_old(&path) {
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
}

fn is_old(path: &Path) -> bool {
    let changed = path.symlink_metadata().and_then(|found| found.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > LONGEST))
}

enum Lock {
    /// By us; without a file where the system locks no folders.
    Held(Option<File>),
    /// By another, or the folder is gone.
    Taken,
}

fn lock(folder: &Path) -> Lock {
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Lock::Taken,
        Err(_) => return Lock::Held(None),
    };
    match file.try_lock() {
        Ok(()) => Lock::Held(Some(file)),
        Err(TryLockError::WouldBlock) => Lock::Taken,
        Err(TryLockError::Error(_)) => Lock::Held(None),
    }
}
