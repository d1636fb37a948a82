//! Files, links, pipes and devices as places for a report.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::{Destination, Identity};
use crate::report::{ReportError, write_atomically};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn refusal(path: &Path) -> String {
    let error = Destination::at(path).unwrap_err();
    assert!(matches!(&error, ReportError::Write { path: named, .. } if named == path), "{error}");
    error.to_string()
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("elsewhere")).unwrap();
    fs::write(at("elsewhere/old"), "before").unwrap();
    symlink("elsewhere/old", at("to-old")).unwrap();
    symlink("to-old", at("to-link")).unwrap();
    symlink("elsewhere/new", at("to-new")).unwrap();
    for (link, file) in [("to-old", "old"), ("to-link", "old"), ("to-new", "new")] {
        write_atomically(&at(link), link.as_bytes()).unwrap();
        assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
        let file = at("elsewhere").join(file);
        assert!(fs::symlink_metadata(&file).unwrap().is_file());
        assert_eq!(fs::read_to_string(file).unwrap(), link);
    }
    assert_eq!(names(&at("elsewhere")), ["new", "old"]);
    // A link that leads to itself leads nowhere.
    symlink("loop", at("loop")).unwrap();
    assert!(refusal(&at("loop")).contains("loop"));
    assert!(fs::symlink_metadata(at("loop")).unwrap().is_symlink());
}

#[test]
fn the_link_is_followed_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("first"), "").unwrap();
    fs::write(at("second"), "stays").unwrap();
    symlink("first", at("link")).unwrap();
    let destination = Destination::at(&at("link")).unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("second", at("link")).unwrap();
    destination.write(b"report").unwrap();
    assert_eq!(fs::read_to_string(at("first")).unwrap(), "report");
    assert_eq!(fs::read_to_string(at("second")).unwrap(), "stays");
}

#[test]
fn a_replaced_file_keeps_its_permissions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    write_atomically(&path, b"report").unwrap();
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
}

fn pipe(folder: &Path) -> PathBuf {
    let path = folder.join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_pipe_is_written_straight_and_stays_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe(folder.path());
    let link = folder.path().join("link");
    symlink("pipe", &link).unwrap();
    for path in [&pipe, &link] {
        // Looking must not wait for a reader.
        let destination = Destination::at(path).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        destination.write(b"report").unwrap();
        assert_eq!(reader.join().unwrap(), b"report");
    }
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(names(folder.path()), ["link", "pipe"]);
}

#[test]
fn what_took_the_place_of_a_pipe_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe(folder.path());
    let destination = Destination::at(&pipe).unwrap();
    fs::remove_file(&pipe).unwrap();
    fs::write(&pipe, "precious").unwrap();
    let error = destination.write(b"report").unwrap_err();
    assert!(error.to_string().contains("no longer"), "{error}");
    assert_eq!(fs::read_to_string(&pipe).unwrap(), "precious");
}

#[test]
fn devices_swallow_and_refuse() {
    write_atomically(Path::new("/dev/null"), b"report").unwrap();
    assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());
    let full = Path::new("/dev/full");
    if full.exists() {
        let error = write_atomically(full, b"report").unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert!(full.metadata().unwrap().file_type().is_char_device());
    }
    assert_eq!(Identity::of(Path::new("/dev/null")), None);
}

#[test]
fn what_cannot_be_written_is_refused_when_it_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "").unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    symlink("nowhere/file", at("astray")).unwrap();
    assert!(refusal(folder.path()).ends_with("is a directory"));
    assert!(refusal(&at("socket")).ends_with("it is a socket"));
    assert!(refusal(&at("no/such/folder/file")).contains("No such file or directory"));
    assert!(refusal(&at("astray")).contains("No such file or directory"));
    assert!(refusal(&at("file/below")).contains("Not a directory"));
    assert!(refusal(&at("new/")).ends_with("no name of a file"));
    assert!(refusal(Path::new("")).ends_with("no name of a file"));
    assert_eq!(names(folder.path()), ["astray", "file", "socket"]);
}

#[test]
fn one_file_has_one_identity_by_every_path() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::hard_link(at("file"), at("hard")).unwrap();
    symlink("file", at("soft")).unwrap();
    symlink("new", at("to-new")).unwrap();
    let of = |name: &str| Destination::at(&at(name)).unwrap().identity().cloned().unwrap();
    let file = Identity::of(&at("file")).unwrap();
    for name in ["file", "hard", "soft", "./file"] {
        assert_eq!(of(name), file, "{name}");
    }
    assert_eq!(of("new"), of("to-new"));
    assert_ne!(of("new"), of("newer"));
    assert_ne!(of("new"), file);
}
