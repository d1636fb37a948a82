//! A path that is looked at once, and written as what it was found to be.

use std::{
    fs::{self, Metadata, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::error::ReportError;

/// Links that a path may lead through.
const MOST_LINKS: usize = 40;

/// Where a report goes.
///
/// A regular file is replaced whole, through a temporary file beside it, so that no reader ever sees
/// half of it. What a symbolic link leads to is replaced, never the link. Devices and pipes are written
/// straight. Looking creates nothing and changes nothing.
#[derive(Clone, Debug)]
pub struct Destination {
    path: PathBuf,
    place: Place,
    identity: Option<Identity>,
}

#[derive(Clone, Debug)]
enum Place {
    /// A regular file, there or to be made, with no link in its path.
    File(PathBuf),
    /// A device or a pipe.
    Stream,
}

/// Which file something is, whatever path leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Which);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    /// A file of a device, by number.
    #[cfg(unix)]
    Node(u64, u64),
    /// A path without links.
    Path(PathBuf),
}

impl Identity {
    /// The file that `path` leads to, if there is one. Character devices have no identity: whoever
    /// writes to one overwrites nothing.
    pub fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        Self::of_found(&found, || path.canonicalize().ok())
    }

    /// The file behind `metadata`; where files have no numbers, its path tells.
    #[cfg(unix)]
    fn of_found(metadata: &Metadata, _path: impl FnOnce() -> Option<PathBuf>) -> Option<Self> {
        Self::of_open(metadata)
    }

    #[cfg(not(unix))]
    fn of_found(_: &Metadata, path: impl FnOnce() -> Option<PathBuf>) -> Option<Self> {
        path().map(|path| Self(Which::Path(path)))
    }

    /// The file behind the metadata of an open file, where files have numbers.
    pub fn of_open(metadata: &Metadata) -> Option<Self> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{FileTypeExt, MetadataExt};
            let shared = metadata.file_type().is_char_device();
            (!shared).then(|| Self(Which::Node(metadata.dev(), metadata.ino())))
        }
        #[cfg(not(unix))]
        {
            let _ = metadata;
            None
        }
    }
}

impl Destination {
    /// Looks at `path`.
    ///
    /// # Errors
    /// [`ReportError::Write`] for a folder, a socket or a disk, and for what cannot be written: a file or
    /// a folder without permission, a folder that does not exist.
    pub fn at(path: &Path) -> Result<Self, ReportError> {
        let found = match path.metadata() {
            Ok(found) => existing(path, &found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_file(path),
            Err(error) => Err(error),
        };
        let (place, identity) = found.map_err(|source| refused(path, source))?;
        Ok(Self { path: path.to_owned(), place, identity })
    }

    /// The path that was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is. One that is yet to be made is known by its path.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Writes it: a file whole or not at all.
    pub fn write(&self, content: &[u8]) -> Result<(), ReportError> {
        let written = match &self.place {
            Place::File(path) => replace(path, content),
            Place::Stream => self.write_straight(content),
        };
        written.map_err(|source| refused(&self.path, source))
    }

    fn write_straight(&self, content: &[u8]) -> io::Result<()> {
        let mut stream = OpenOptions::new().write(true).open(&self.path)?;
        let found = stream.metadata()?;
        // What came in its place may be a file that would lose its content.
        if found.is_file() || Identity::of_open(&found) != self.identity {
            return Err(io::Error::other("it is no longer the device or pipe that it was"));
        }
        stream.write_all(content)?;
        stream.flush()
    }
}

fn refused(path: &Path, source: io::Error) -> ReportError {
    ReportError::Write { path: path.to_owned(), source }
}

/// What to do with a path that leads to something.
fn existing(path: &Path, found: &Metadata) -> io::Result<(Place, Option<Identity>)> {
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        refuse_unwritable(found)?;
        return Ok((Place::Stream, Identity::of_found(found, || path.canonicalize().ok())));
    }
    // Opened and closed again: may it be written at all?
    OpenOptions::new().write(true).open(path)?;
    let real = path.canonicalize()?;
    tempfile::tempfile_in(folder_of(&real))?;
    let identity = Identity::of_found(found, || Some(real.clone()));
    Ok((Place::File(real), identity))
}

/// Refuses what is neither a file nor a device or pipe that takes text.
fn refuse_unwritable(found: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if found.file_type().is_socket() {
            return Err(io::Error::other("it is a socket"));
        }
        if found.file_type().is_block_device() {
            return Err(io::Error::other("it is a disk"));
        }
    }
    let _ = found;
    Ok(())
}

/// What to do with a path that leads to nothing yet: itself, or where its links end.
fn new_file(path: &Path) -> io::Result<(Place, Option<Identity>)> {
    let mut end = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&end) else { break };
        end = folder_of(&end).join(target);
    }
    // "", ".." and the like, and "folder/" where there is no folder.
    let slash = end.as_os_str().as_encoded_bytes().ends_with(b"/");
    let name = end.file_name().filter(|_| !slash);
    let name = name.ok_or_else(|| io::Error::other("no name of a file"))?;
    let folder = folder_of(&end).canonicalize()?;
    tempfile::tempfile_in(&folder)?;
    let real = folder.join(name);
    Ok((Place::File(real.clone()), Some(Identity(Which::Path(real)))))
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Puts a file with `content` at `path`, through a temporary one in the same folder.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".headwise-");
    // Temporary files are private by default; a report is as readable as any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder_of(path))?;
    file.write_all(content)?;
    if let Ok(before) = fs::symlink_metadata(path)
        && before.is_file()
    {
        file.as_file().set_permissions(before.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(all(test, unix))]
#[path = "destination_tests.rs"]
mod tests;
