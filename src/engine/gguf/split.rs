//! Models that are split over several files, as llama.cpp's `gguf-split` writes them.
//!
//! Part `i` of `n` is `NAME-0000i-of-0000n.gguf` and says so in its metadata (`split.no` counts from
//! zero). The model's own metadata are in the first part.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::engine::error::ModelError;

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// What the first part says of the whole.
#[derive(Debug)]
pub(super) struct Split {
    parts: usize,
    /// Tensors in all parts together.
    tensors: Option<usize>,
}

impl Split {
    /// What the file at `path` says, or `None` when the model is whole in it. Refuses a part that is
    /// not the first.
    pub fn of(path: &Path, metadata: &Metadata) -> Result<Option<Self>, ModelError> {
        let Some(parts) = metadata.count(COUNT)? else {
            return match metadata.count(NUMBER)? {
                None => Ok(None),
                Some(_) => Err(ModelError::MissingKey(COUNT.into())),
            };
        };
        let tensors = metadata.count(TENSORS)?;
        let number = metadata.count(NUMBER)?.unwrap_or(0);
        if parts <= 1 && number == 0 {
            return Ok(tensors.map(|tensors| Self { parts: 1, tensors: Some(tensors) }));
        }
        let refuse = |reason| Err(ModelError::Split { path: path.to_path_buf(), reason });
        if number >= parts {
            return refuse(format!("{NUMBER} is {number} (from 0), {COUNT} is {parts}"));
        }
        if number > 0 {
            let first = prefix(path, number, parts)
                .map(|prefix| format!(", {}", part_name(&prefix, 0, parts)))
                .unwrap_or_default();
            let number = number + 1;
            return refuse(format!("it is part {number} of {parts}; open the first part{first}"));
        }
        Ok(Some(Self { parts, tensors }))
    }

    /// Where the parts after the first lie: beside it at `path`, under names that follow its name.
    pub fn other_paths(&self, path: &Path) -> Result<Vec<PathBuf>, ModelError> {
        let parts = self.parts;
        if parts == 1 {
            return Ok(Vec::new());
        }
        let refuse = |reason| Err(ModelError::Split { path: path.to_path_buf(), reason });
        let Some(prefix) = prefix(path, 0, parts) else {
            let ending = part_name("", 0, parts);
            return refuse(format!(
                "it is part 1 of {parts}, and its name does not end in {ending:?}, from which the \
                 names of the others would follow"
            ));
        };
        let mut others = Vec::new();
        for number in 1..parts {
            let other = path.with_file_name(part_name(&prefix, number, parts));
            if !other.exists() {
                let number = number + 1;
                return refuse(format!(
                    "it is part 1 of {parts}, and part {number} is missing: {}",
                    other.display()
                ));
            }
            others.push(other);
        }
        Ok(others)
    }

    /// Holds part `number` (from zero) against the `first` part: it must be the part that its name
    /// says, of the same model.
    pub fn check_part(
        &self,
        number: usize,
        path: &Path,
        first: &Metadata,
        part: &Metadata,
    ) -> Result<(), ModelError> {
        let refuse = |reason| Err(ModelError::Split { path: path.to_path_buf(), reason });
        for (key, expected) in
            [(NUMBER, Some(number)), (COUNT, Some(self.parts)), (TENSORS, self.tensors)]
        {
            let found = part.count(key)?;
            if found != expected {
                let say = |value: Option<usize>| value.map_or("none".into(), |v| v.to_string());
                let (found, expected) = (say(found), say(expected));
                return refuse(format!(
                    "as part {} of {} its {key} is {found}, expected {expected}",
                    number + 1,
                    self.parts
                ));
            }
        }
        // Usually a later part has no other keys. One that says something else of the model than the
        // first is of another model.
        let own = |key: &str| key.starts_with("split.") || key.starts_with("general.");
        for (key, value) in part.iter().filter(|(key, _)| !own(key)) {
            if first.value(key) != Some(value) {
                let expected = first.value(key).map_or("none".into(), ToString::to_string);
                return refuse(format!("its {key} is {value}, the first part's is {expected}"));
            }
        }
        let key = "general.architecture";
        match (part.text(key)?, first.text(key)?) {
            (Some(found), Some(expected)) if found != expected => {
                refuse(format!("its {key} is {found:?}, the first part's is {expected:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Holds the number of tensors found in all parts against what they say.
    pub fn check_tensors(&self, path: &Path, found: usize) -> Result<(), ModelError> {
        match self.tensors {
            Some(expected) if expected != found => Err(ModelError::Split {
                path: path.to_path_buf(),
                reason: format!(
                    "{TENSORS} is {expected}, its {} parts have {found} tensors",
                    self.parts
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// Where all parts of a model lie of which `path` is one by its name; `path` alone if it is none.
pub(super) fn parts_by_name(path: &Path) -> Vec<PathBuf> {
    let parts = || {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, parts) = name.rsplit_once("-of-")?;
        let number = rest.rsplit_once('-')?.1.parse::<usize>().ok()?.checked_sub(1)?;
        // Five digits, as in all names of parts.
        let parts = parts.parse().ok().filter(|parts| (1..100_000).contains(parts))?;
        let prefix = prefix(path, number, parts)?;
        let part = |number| path.with_file_name(part_name(&prefix, number, parts));
        Some((0..parts).map(part).collect())
    };
    parts().unwrap_or_else(|| vec![path.to_path_buf()])
}

/// The name of part `number`, counted from zero here and from one in the name.
fn part_name(prefix: &str, number: usize, parts: usize) -> String {
    format!("{prefix}-{:05}-of-{parts:05}.gguf", number + 1)
}

/// What comes before the number in the name of part `number` at `path`.
fn prefix(path: &Path, number: usize, parts: usize) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(&part_name("", number, parts)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_first() {
        let path = Path::new("/models/big-00001-of-00012.gguf");
        assert_eq!(prefix(path, 0, 12).unwrap(), "big");
        assert_eq!(part_name("big", 11, 12), "big-00012-of-00012.gguf");
        for (number, parts) in [(1, 12), (0, 11)] {
            assert_eq!(prefix(path, number, parts), None);
        }
        assert_eq!(prefix(Path::new("/models/big.gguf"), 0, 12), None);
    }

    #[test]
    fn a_name_tells_all_parts() {
        let names = |path: &str| {
            let parts = parts_by_name(Path::new(path));
            parts.iter().map(|part| part.display().to_string()).collect::<Vec<_>>()
        };
        let both = ["/m/a-b-00001-of-00002.gguf", "/m/a-b-00002-of-00002.gguf"];
        assert_eq!(names(both[0]), both);
        assert_eq!(names(both[1]), both);
        for alone in [
            "big.gguf",
            "big-1-of-2.gguf",
            "big-00001-of-00002.txt",
            "big-00000-of-00002.gguf",
            "big-00001-of-00000.gguf",
            "big-00001-of-99999999999.gguf",
            "-of-.gguf",
            "/",
        ] {
            assert_eq!(names(alone), [alone]);
        }
    }
}
