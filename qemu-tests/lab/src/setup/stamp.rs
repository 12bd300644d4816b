//! The stamp of a finished step: what it was made from and what came out.
//!
//! A step works in `NAME.partial` and renames that to `NAME` when all is done, so a directory that
//! bears its final name is whole. The stamp in it says whether it is still the right one: another
//! recipe, a missing file or one of another size, and the step runs again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};

const STAMP: &str = "stamp.json";

/// What a finished directory says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Everything of ours that went in. Another text means another result.
    pub(crate) recipe: String,
    /// What the step learned and later steps and reports want to know: package versions, the
    /// kernel's release.
    pub(crate) facts: BTreeMap<String, String>,
    /// The results, with their sizes in bytes.
    files: BTreeMap<PathBuf, u64>,
}

impl Stamp {
    /// The stamp of `dir`, if it is whole and was made by this recipe.
    pub(crate) fn of(dir: &Path, recipe: &str) -> Option<Self> {
        let stamp: Self = serde_json::from_slice(&fs::read(dir.join(STAMP)).ok()?).ok()?;
        let whole = stamp.files.iter().all(|(name, size)| size_of(&dir.join(name)) == Some(*size));
        (stamp.recipe == recipe && whole).then_some(stamp)
    }

    /// A fact, or the error that says that the cache is not what we made.
    pub(crate) fn fact(&self, name: &str) -> Result<&str> {
        self.facts.get(name).map(String::as_str).ok_or_else(|| Error::Unusable {
            what: format!("the cache's stamp lacks {name}"),
            advice: "remove the lab's cache directory and run set-up again",
        })
    }
}

fn size_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.len())
}

/// A directory in the making.
#[derive(Debug)]
pub(crate) struct Partial {
    target: PathBuf,
    path: PathBuf,
}

impl Partial {
    /// An empty work directory for `target`; what an interrupted run left there is thrown away.
    pub(crate) fn begin(target: &Path) -> Result<Self> {
        let path = target.with_extension("partial");
        remove(&path)?;
        fs::create_dir_all(&path).on("create", &path)?;
        Ok(Self { target: target.to_owned(), path })
    }

    /// The work directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks and measures the results, stamps them and gives the directory its final name.
    ///
    /// `results` are names with the least size in bytes that can be right.
    pub(crate) fn finish(
        self,
        recipe: &str,
        facts: BTreeMap<String, String>,
        results: &[(&str, u64)],
    ) -> Result<Stamp> {
        let mut files = BTreeMap::new();
        for (name, least) in results {
            let path = self.path.join(name);
            let size = fs::metadata(&path).on("find the result", &path)?.len();
            if size < *least {
                return Err(Error::Unusable {
                    what: format!("{} has only {size} bytes", path.display()),
                    advice: "look at setup.log in the cache, then run set-up again",
                });
            }
            files.insert(PathBuf::from(name), size);
        }
        let stamp = Stamp { recipe: recipe.to_owned(), facts, files };
        let text = serde_json::to_vec_pretty(&stamp).expect("maps of strings become JSON");
        let place = self.path.join(STAMP);
        fs::write(&place, text).on("write the stamp", &place)?;
        self.replace()?;
        Ok(stamp)
    }

    /// Swaps the new directory in; guests that run on the old one keep its open files.
    fn replace(&self) -> Result<()> {
        let old = self.target.with_extension("old");
        remove(&old)?;
        if self.target.exists() {
            fs::rename(&self.target, &old).on("put aside", &self.target)?;
        }
        fs::rename(&self.path, &self.target).on("move into place", &self.target)?;
        remove(&old)
    }
}

/// Removes a directory with all that is in it, if it exists.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .on("remove", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(target: &Path, recipe: &str) -> Stamp {
        let partial = Partial::begin(target).unwrap();
        fs::write(partial.path().join("image"), "12345").unwrap();
        let facts = BTreeMap::from([("version".to_owned(), "1".to_owned())]);
        partial.finish(recipe, facts, &[("image", 5)]).unwrap()
    }

    #[test]
    fn a_finished_step_is_recognised_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("step");
        assert_eq!(Stamp::of(&target, "one"), None);
        let stamp = finished(&target, "one");
        assert_eq!(Stamp::of(&target, "one"), Some(stamp.clone()));
        assert_eq!(stamp.fact("version").unwrap(), "1");
        assert_eq!(Stamp::of(&target, "another recipe"), None);
        fs::write(target.join("image"), "123456").unwrap();
        assert_eq!(Stamp::of(&target, "one"), None, "a result of another size");
        finished(&target, "two");
        assert!(Stamp::of(&target, "two").is_some(), "a step replaces its older self");
    }

    #[test]
    fn an_interrupted_step_starts_anew_and_a_short_result_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("step");
        let interrupted = Partial::begin(&target).unwrap();
        fs::write(interrupted.path().join("half"), "").unwrap();
        let again = Partial::begin(&target).unwrap();
        assert!(!again.path().join("half").exists());
        fs::write(again.path().join("image"), "12").unwrap();
        let error = again.finish("one", BTreeMap::new(), &[("image", 3)]).unwrap_err();
        assert!(error.to_string().contains("only 2 bytes"), "{error}");
        assert!(!target.exists());
    }
}
