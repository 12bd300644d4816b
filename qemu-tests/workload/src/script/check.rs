//! The script's books: who owns how much at each step, before anything is played.

use std::collections::BTreeMap;

use memtide_units::ByteSize;

use super::error::Problem;
use super::{Command, Pages, ScriptError, Step, Word};
use crate::pattern::PAGE_BYTES;

/// Goes through all steps as the player will.
///
/// # Errors
/// The first step that uses a name that is not owned, allocates one that is, or asks for more
/// than is there.
pub(super) fn check(steps: &[Step]) -> Result<(), ScriptError> {
    let mut books = Books::default();
    steps.iter().try_for_each(|step| books.apply(&step.command))
}

/// Pages by name.
#[derive(Default)]
struct Books<'a> {
    owned: BTreeMap<&'a str, usize>,
    files: BTreeMap<&'a str, usize>,
}

impl<'a> Books<'a> {
    fn apply(&mut self, command: &'a Command) -> Result<(), ScriptError> {
        match command {
            Command::Alloc(region, pages) => self.alloc(region, pages),
            Command::Grow(region, pages) => {
                let owned = self.find(region)?;
                self.owned.insert(&region.text, owned.saturating_add(pages.count));
                Ok(())
            }
            Command::Hot(region, pages, _) => self.rest(region, pages).map(|_| ()),
            Command::Free(region, pages) => self.free(region, pages.as_ref()),
            Command::Read(file, pages) => self.read(file, pages),
            Command::Verify(Some(region)) => self.find(region).map(|_| ()),
            Command::Verify(None) | Command::Idle(_) | Command::Files(..) | Command::Wait => Ok(()),
        }
    }

    fn alloc(&mut self, region: &'a Word, pages: &Pages) -> Result<(), ScriptError> {
        if self.owned.contains_key(region.text.as_str()) {
            return Err(ScriptError::new(region, Problem::Taken));
        }
        self.owned.insert(&region.text, pages.count);
        Ok(())
    }

    fn read(&mut self, file: &'a Word, pages: &Pages) -> Result<(), ScriptError> {
        let made = *self.files.entry(&file.text).or_insert(pages.count);
        if made == pages.count {
            return Ok(());
        }
        let made = ByteSize::from_bytes((made * PAGE_BYTES) as u64);
        Err(ScriptError::new(&pages.word, Problem::OtherSize { file: file.text.clone(), made }))
    }

    fn free(&mut self, region: &'a Word, pages: Option<&Pages>) -> Result<(), ScriptError> {
        self.find(region)?;
        match pages.map_or(Ok(0), |pages| self.rest(region, pages))? {
            0 => self.owned.remove(region.text.as_str()),
            rest => self.owned.insert(&region.text, rest),
        };
        Ok(())
    }

    /// What stays of `region` without `pages`.
    fn rest(&self, region: &Word, pages: &Pages) -> Result<usize, ScriptError> {
        let owned = self.find(region)?;
        owned.checked_sub(pages.count).ok_or_else(|| {
            let owned = ByteSize::from_bytes((owned * PAGE_BYTES) as u64);
            let problem = Problem::MoreThanOwned { region: region.text.clone(), owned };
            ScriptError::new(&pages.word, problem)
        })
    }

    fn find(&self, region: &Word) -> Result<usize, ScriptError> {
        self.owned.get(region.text.as_str()).copied().ok_or_else(|| {
            let names: Vec<_> = self.owned.keys().copied().collect();
            let owned = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            ScriptError::new(region, Problem::UnknownRegion { owned })
        })
    }
}
