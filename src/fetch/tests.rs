//! Fetching with a stand-in for Python: no network is needed.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{Artifact, CacheDir, Event, FetchError, Member, Platform, Python};

const INNER: &str = "package/data.bin";

/// A folder with a stand-in for Python, the wheel it delivers, and a cache.
struct Bench {
    folder: TempDir,
    content: Vec<u8>,
    sha256: String,
}

impl Bench {
    fn new() -> Self {
        let content: Vec<u8> =
            (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sha256 = format!("{:x}", Sha256::digest(&content));
        let bench = Self { folder: tempfile::tempdir().unwrap(), content, sha256 };
        bench.write_wheel(INNER, &bench.content);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cache(&self) -> CacheDir {
        CacheDir::new(self.path("cache"))
    }

    fn write_wheel(&self, member: &str, content: &[u8]) {
        let mut wheel =
            ZipWriter::new(fs::File::create(self.path("thing-1.0-py3-none-any.whl")).unwrap());
        wheel.start_file(member, SimpleFileOptions::default()).unwrap();
        wheel.write_all(content).unwrap();
        wheel.finish().unwrap();
    }

    /// A script in place of Python; `$folder` is where the wheel should go.
    fn python(&self, body: &str) -> Python {
        let path = self.path("python");
        let script = format!(
            "#!/bin/sh\nfolder=\nwhile [ $# -gt 1 ]; do [ \"$1\" = -d ] && folder=$2; shift; done\n\
             requirement=$1\nbench='{}'\n{body}\n",
            self.folder.path().display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Python::new(path)
    }

    fn delivering(&self) -> Python {
        self.python("[ \"$requirement\" = thing==1.0 ] && cp \"$bench\"/*.whl \"$folder\"")
    }

    fn fetch_as(
        &self,
        python: &Python,
        member: Member<'_>,
        platform: Option<Platform>,
    ) -> Result<PathBuf, FetchError> {
        let members = [member];
        let artifact = Artifact { package: "thing", version: "1.0", members: &members, platform };
        artifact.ensure_with(python, &self.cache(), &mut |_| {})
    }

    fn fetch(&self, python: &Python) -> Result<PathBuf, FetchError> {
        self.fetch_as(python, self.member(), None)
    }

    fn member(&self) -> Member<'_> {
        Member { path: INNER, bytes: self.content.len() as u64, sha256: &self.sha256 }
    }

    fn installed(&self) -> PathBuf {
        self.path("cache/thing-1.0/data.bin")
    }

    /// A failed fetch leaves neither a file nor a temporary one.
    fn assert_nothing_left(&self) {
        let left = fs::read_dir(self.path("cache/thing-1.0")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0);
    }
}

fn failing(python: &str, check: impl Fn(&FetchError) -> bool) {
    let bench = Bench::new();
    let error = bench.fetch(&bench.python(python)).unwrap_err();
    assert!(check(&error), "{error:?}");
    assert!(!error.to_string().contains('\n'));
    bench.assert_nothing_left();
}

#[test]
fn fetches_once_and_then_only_verifies() {
    let bench = Bench::new();
    let folder = bench.fetch(&bench.delivering()).unwrap();
    assert_eq!(folder, bench.path("cache/thing-1.0"));
    assert_eq!(fs::read(bench.installed()).unwrap(), bench.content);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

    let members = [bench.member()];
    let artifact = Artifact { package: "thing", version: "1.0", members: &members, platform: None };
    let mut last = None;
    let offline = Python::new(bench.path("no-such-python"));
    artifact
        .ensure_with(&offline, &bench.cache(), &mut |event| match event {
            Event::Verifying { done, total, .. } => last = Some((done, total)),
            other => panic!("{other:?}"),
        })
        .unwrap();
    assert_eq!(last, Some((3_000_000, 3_000_000)));
}

#[test]
fn a_fetched_file_is_as_readable_as_any_new_file() {
    let bench = Bench::new();
    bench.fetch(&bench.delivering()).unwrap();
    fs::write(bench.path("new"), "").unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(bench.installed()), mode(bench.path("new")));
}

#[test]
fn reports_download_and_unpacking() {
    let bench = Bench::new();
    let members = [bench.member()];
    let artifact = Artifact { package: "thing", version: "1.0", members: &members, platform: None };
    let mut events = Vec::new();
    artifact
        .ensure_with(&bench.delivering(), &bench.cache(), &mut |event| match event {
            Event::Downloading { package, version } => events.push(format!("{package} {version}")),
            Event::Unpacking { done, total, .. } => events.push(format!("{done}/{total}")),
            Event::Verifying { .. } => panic!("nothing to verify yet"),
        })
        .unwrap();
    assert_eq!(events.first().map(String::as_str), Some("thing 1.0"));
    assert_eq!(events.last().map(String::as_str), Some("3000000/3000000"));
}

#[test]
fn a_damaged_file_in_the_cache_is_fetched_again() {
    for damage in [|bytes: &mut Vec<u8>| bytes[1000] ^= 1, |bytes: &mut Vec<u8>| bytes.truncate(5)]
    {
        let bench = Bench::new();
        bench.fetch(&bench.delivering()).unwrap();
        let mut bytes = bench.content.clone();
        damage(&mut bytes);
        fs::write(bench.installed(), &bytes).unwrap();
        bench.fetch(&bench.delivering()).unwrap();
        assert_eq!(fs::read(bench.installed()).unwrap(), bench.content);
    }
}

#[test]
fn many_at_once_all_get_the_whole_file() {
    let bench = Bench::new();
    let python = bench.delivering();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| bench.fetch(&python))).collect();
        for fetch in fetches {
            fetch.join().unwrap().unwrap();
        }
    });
    assert_eq!(fs::read(bench.installed()).unwrap(), bench.content);
    assert_eq!(fs::read_dir(bench.path("cache/thing-1.0")).unwrap().count(), 1);
}

#[test]
fn python_or_pip_missing() {
    let bench = Bench::new();
    let missing = bench.fetch(&Python::new(bench.path("no-such-python"))).unwrap_err();
    assert!(matches!(missing, FetchError::PythonMissing { .. }), "{missing:?}");
    bench.assert_nothing_left();
    failing("echo \"$0: No module named pip\" >&2; exit 1", |error| {
        matches!(error, FetchError::PipMissing { .. })
    });
}

#[test]
fn no_network_is_told_from_other_failures_of_pip() {
    failing(
        "echo 'WARNING: Retrying after connection broken by NewConnectionError: Network is unreachable' >&2\n\
         echo 'ERROR: No matching distribution found for thing==1.0' >&2; exit 1",
        |error| matches!(error, FetchError::Network { line, .. } if line.contains("Retrying")),
    );
    failing(
        "echo first >&2; echo 'ERROR: No matching distribution found for thing==1.0' >&2; exit 1",
        |error| {
            matches!(error, FetchError::Pip { line, status, requirement }
                if line.starts_with("ERROR: No matching") && status.code() == Some(1) && requirement == "thing==1.0")
        },
    );
    failing(
        "exit 3",
        |error| matches!(error, FetchError::Pip { line, .. } if line == "no message"),
    );
}

#[test]
fn pip_that_leaves_no_wheel_or_a_broken_one() {
    failing("exit 0", |error| matches!(error, FetchError::NoWheel { .. }));
    failing(
        "echo nonsense > \"$folder/thing.whl\"",
        |error| matches!(error, FetchError::Wheel { wheel, .. } if wheel == "thing.whl"),
    );
    failing("head -c 4000 \"$bench\"/*.whl > \"$folder/thing.whl\"", |error| {
        matches!(error, FetchError::Wheel { .. })
    });
}

#[test]
fn a_wheel_with_other_files() {
    let bench = Bench::new();
    bench.write_wheel("package/other.bin", &bench.content);
    let error = bench.fetch(&bench.delivering()).unwrap_err();
    assert!(
        matches!(&error, FetchError::MemberMissing { member, .. } if member == INNER),
        "{error:?}"
    );
    bench.assert_nothing_left();
}

#[test]
fn a_file_of_another_size_or_content() {
    let bench = Bench::new();
    bench.write_wheel(INNER, &bench.content[1..]);
    let error = bench.fetch(&bench.delivering()).unwrap_err();
    assert!(matches!(error, FetchError::Size { expected: 3_000_000, got: 2_999_999, .. }));

    let mut other = bench.content.clone();
    other[0] ^= 1;
    bench.write_wheel(INNER, &other);
    let error = bench.fetch(&bench.delivering()).unwrap_err();
    let FetchError::Checksum { expected, got, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*expected, bench.sha256);
    assert_eq!(*got, format!("{:x}", Sha256::digest(&other)));
    bench.assert_nothing_left();
}

#[test]
fn a_cache_folder_that_cannot_be() {
    let bench = Bench::new();
    fs::write(bench.path("cache"), "a file where the folder should be").unwrap();
    let error = bench.fetch(&bench.delivering()).unwrap_err();
    assert!(
        matches!(&error, FetchError::Cache { path, .. } if path.starts_with(bench.path("cache")))
    );
}

#[test]
fn another_platform_is_refused_before_anything_is_fetched() {
    let bench = Bench::new();
    let platform = Platform { name: "another machine", here: false };
    let python = Python::new(bench.path("no-such-python"));
    let error = bench.fetch_as(&python, bench.member(), Some(platform)).unwrap_err();
    assert_eq!(error.to_string(), "thing 1.0 is only available for another machine");
    assert!(!Path::new(&bench.path("cache")).exists());
}

#[test]
fn what_interrupted_fetches_left_is_removed_and_nothing_else() {
    let bench = Bench::new();
    let folder = bench.path("cache/thing-1.0");
    let make = |name: &str, days: u64| {
        let path = folder.join(name);
        fs::create_dir_all(path.join("inner")).unwrap();
        fs::write(path.join("inner/half"), "of a wheel").unwrap();
        let ago = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        fs::File::open(&path).unwrap().set_modified(ago).unwrap();
        path
    };
    let abandoned = make(".fetch-abandoned", 0);
    let in_use = make(".fetch-in-use", 0);
    let held = fs::File::open(&in_use).unwrap();
    held.lock().unwrap();
    let old = make(".tmpold", 2);
    let young = make(".tmpyoung", 0);
    let other = make("other", 2);
    let half = folder.join(".tmphalf");
    fs::write(&half, "of a file").unwrap();
    let ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    fs::File::options().write(true).open(&half).unwrap().set_modified(ago).unwrap();

    bench.fetch(&bench.delivering()).unwrap();
    let there = [&abandoned, &in_use, &old, &young, &other, &half].map(|path| path.exists());
    assert_eq!(there, [false, true, false, true, true, false]);
    // Once its holder ends, the next fetch removes it too, though it downloads nothing.
    drop(held);
    bench.fetch(&Python::new(bench.path("no-such-python"))).unwrap();
    assert!(!in_use.exists() && young.exists());
}

#[test]
fn fetches_that_clean_up_while_others_begin_let_each_other_live() {
    let bench = Bench::new();
    let python = bench.python("sleep 0.02; cp \"$bench\"/*.whl \"$folder\"");
    let folder = bench.path("cache/thing-1.0");
    fs::create_dir_all(&folder).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                super::work::remove_stale(&folder);
            }
        });
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| bench.fetch(&python))).collect();
        let results: Vec<_> = fetches.into_iter().map(|fetch| fetch.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| drop(result.unwrap().unwrap()));
    });
    assert_eq!(fs::read(bench.installed()).unwrap(), bench.content);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}
