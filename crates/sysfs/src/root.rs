//! The directory under which `/proc`, `/sys` and `/dev` are looked for.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::{Error, Result};

/// Most bytes read of a text file: the largest that this crate reads, `/proc/iomem`, has some
/// hundred KiB on machines with very many devices. A limit, so that a wrong file cannot eat memory.
const MAX_TEXT: u64 = 4 << 20;

/// Room for a text file at first: the kernel's are mostly smaller.
const TEXT: usize = 8 << 10;

/// Takes writes in place of the kernel's files: how a fake root answers like a kernel.
pub trait Writer: Send + Sync {
    /// Handles `text` written to `path`, which is relative to the root.
    ///
    /// # Errors
    /// What write(2), or the open(2) before it, would have answered.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

/// The directory that holds `proc`, `sys` and `dev`. Cheap to clone.
#[derive(Clone)]
pub struct Root {
    path: PathBuf,
    writer: Option<Arc<dyn Writer>>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Root").field(&self.path).finish()
    }
}

impl Default for Root {
    /// The running system's own.
    fn default() -> Self {
        Self::new("/")
    }
}

impl Root {
    /// The tree under `path`; `/` is the running system.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), writer: None }
    }

    /// The tree under `path`, with `writer` in the place of write(2).
    pub fn with_writer(path: impl Into<PathBuf>, writer: Arc<dyn Writer>) -> Self {
        Self { path: path.into(), writer: Some(writer) }
    }

    /// Where `relative` (such as `proc/meminfo`, with or without a leading slash) lies.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative_to_root(relative.as_ref()))
    }

    /// The whole of a text file, invalid UTF-8 replaced.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Disabled`], [`Error::Io`]; [`Error::Garbage`] past 4 MiB.
    pub fn read(&self, relative: impl AsRef<Path>) -> Result<String> {
        let path = self.path(relative);
        // With no room at first it would be read in pieces of 32 bytes that double.
        let mut bytes = Vec::with_capacity(TEXT);
        File::open(&path)
            .and_then(|file| file.take(MAX_TEXT + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::reading(&path, error))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if bytes.len() as u64 > MAX_TEXT {
            return Err(Error::garbage(path, "a text file of at most 4 MiB", &text));
        }
        Ok(text)
    }

    /// The file's only value, of the kind that `expected` describes.
    pub(crate) fn value<T: FromStr>(
        &self,
        relative: impl AsRef<Path>,
        expected: &'static str,
    ) -> Result<T> {
        self.parsed(relative, expected, |text| text.parse().ok())
    }

    /// What `parse` makes of the file's trimmed text; `None` from it is [`Error::Garbage`].
    pub(crate) fn parsed<T>(
        &self,
        relative: impl AsRef<Path>,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T> {
        let text = self.read(&relative)?;
        parse(text.trim()).ok_or_else(|| Error::garbage(self.path(relative), expected, &text))
    }

    /// Writes `text` with one plain write(2): the kernel takes each write as one request, so a
    /// second one would be a second request, and one that a signal interrupted (EINTR) must end.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Refused`] with the kernel's answer.
    pub fn write(&self, relative: impl AsRef<Path>, text: &str) -> Result<()> {
        let relative = relative_to_root(relative.as_ref());
        let written = match &self.writer {
            Some(writer) => writer.write(relative, text),
            None => write_once(&self.path.join(relative), text),
        };
        written.map_err(|error| Error::writing(&self.path.join(relative), text, error))
    }

    /// True where the file or directory is there.
    pub fn exists(&self, relative: impl AsRef<Path>) -> bool {
        self.path(relative).exists()
    }

    /// The number of the file or directory, that of a link being its own.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Io`].
    pub(crate) fn inode(&self, relative: impl AsRef<Path>) -> Result<u64> {
        let path = self.path(relative);
        let found = fs::symlink_metadata(&path);
        found.map(|found| found.ino()).map_err(|error| Error::reading(&path, error))
    }

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Io`].
    pub fn names(&self, relative: impl AsRef<Path>) -> Result<Vec<String>> {
        self.entries(relative, |_| true)
    }

    /// The names of the directories in a directory, in no order; links to some are none.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Io`].
    pub(crate) fn directories(&self, relative: impl AsRef<Path>) -> Result<Vec<String>> {
        self.entries(relative, |entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    }

    fn entries(
        &self,
        relative: impl AsRef<Path>,
        is_wanted: impl Fn(&fs::DirEntry) -> bool,
    ) -> Result<Vec<String>> {
        let path = self.path(relative);
        let name = |entry: fs::DirEntry| {
            is_wanted(&entry).then(|| entry.file_name().to_string_lossy().into_owned())
        };
        let names = fs::read_dir(&path)
            .and_then(|entries| entries.filter_map(|entry| entry.map(name).transpose()).collect());
        names.map_err(|error| Error::reading(&path, error))
    }

    /// A directory with many small files in it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Io`].
    pub(crate) fn dir(&self, relative: impl AsRef<Path>) -> Result<Dir> {
        let path = self.path(relative);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Dir { fd, path }),
            Err(error) => Err(Error::reading(&path, error.into())),
        }
    }

    /// The numbers `N` of the directory's entries `prefixN`, ascending.
    pub(crate) fn numbers(&self, relative: impl AsRef<Path>, prefix: &str) -> Result<Vec<u64>> {
        let number = |name: String| name.strip_prefix(prefix)?.parse().ok();
        let mut numbers: Vec<u64> = self.names(relative)?.into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The last part of what a symbolic link points to, or `None` where there is no link.
    pub(crate) fn link_name(&self, relative: impl AsRef<Path>) -> Result<Option<String>> {
        let path = self.path(relative);
        match fs::read_link(&path) {
            Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
            Err(error) => crate::error::optional(Err(Error::reading(&path, error))),
        }
    }

    /// True where writes go to a test's writer.
    pub(crate) fn is_fake(&self) -> bool {
        self.writer.is_some()
    }
}

/// Most bytes of a small file: a number, and a little more.
const SMALL: usize = 64;

/// A directory from which many small files are read: the kernel finds each from here, not by way of
/// fifteen directories.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Where `relative` lies.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.path.join(relative)
    }

    /// The only value of a file of at most 64 bytes, of the kind that `expected` describes. The kernel
    /// hands such a file out in one piece.
    pub(crate) fn value<T: FromStr>(&self, relative: &str, expected: &'static str) -> Result<T> {
        let mut bytes = [0; SMALL];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let read = rustix::fs::openat(&self.fd, relative, flags, Mode::empty())
            .and_then(|file| rustix::io::read(&file, &mut bytes))
            .map_err(|error| Error::reading(&self.path(relative), error.into()))?;
        let text = String::from_utf8_lossy(&bytes[..read]);
        let garbage = |_| Error::garbage(self.path(relative), expected, &text);
        text.trim().parse().map_err(garbage)
    }
}

fn relative_to_root(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn write_once(path: &Path, text: &str) -> io::Result<()> {
    let file: OwnedFd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let written = rustix::io::write(&file, text.as_bytes())?;
    if written == text.len() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::WriteZero, format!("only {written} bytes were taken")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    #[test]
    fn a_leading_slash_does_not_leave_the_root() {
        let root = Root::new("/tmp/fake");
        assert_eq!(root.path("/proc/meminfo"), Path::new("/tmp/fake/proc/meminfo"));
        assert_eq!(root.path("proc/meminfo"), Path::new("/tmp/fake/proc/meminfo"));
    }

    #[test]
    fn absent_and_unparsable_files_are_different_errors() {
        let fake = FakeRoot::new();
        fake.put("sys/number", "12a\n");
        let root = fake.root();
        assert!(root.value::<u64>("sys/none", "a number").unwrap_err().is_missing());
        let error = root.value::<u64>("sys/number", "a number").unwrap_err();
        assert!(matches!(error, Error::Garbage { read, .. } if read == "12a\n"));
    }

    #[test]
    fn a_plain_root_writes_the_file_itself_but_never_creates_one() {
        let fake = FakeRoot::new();
        fake.put("sys/file", "");
        let plain = Root::new(fake.path());
        plain.write("sys/file", "7").unwrap();
        assert_eq!(plain.read("sys/file").unwrap(), "7");
        assert!(plain.write("sys/absent", "7").unwrap_err().is_missing());
    }
}
