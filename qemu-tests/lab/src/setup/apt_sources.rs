//! Where the host gets Debian from, read out of its own apt configuration.
//!
//! The repository names no archive host: a company's mirror, a snapshot or a proxy that works for
//! the host works for the lab. Both formats of sources.list(5) are read.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::error::{Error, IoContext, Result};

/// Suites that name a release without its code name.
const RELEASE_NAMES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];

/// One archive and suite that the host's apt uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The archive's address as apt has it, perhaps `mirror+file:/...`.
    pub(crate) uri: String,
    suite: String,
    components: Vec<String>,
}

/// The address of the Debian archive itself (not security, not somebody's add-on) that apt under
/// `root` (usually `/`) uses, as a plain URL.
///
/// # Errors
/// If apt is not configured for Debian.
pub(crate) fn archive(root: &Path) -> Result<String> {
    let codename = codename(root)?;
    let sources = all(root)?;
    let source = debian_main(&sources, &codename).ok_or_else(|| Error::Unusable {
        what: format!("apt's sources name no archive for Debian {codename} main"),
        advice: "the lab needs a Debian 12 or 13 host with a working apt",
    })?;
    resolve_mirror_list(root, &source.uri)
}

fn codename(root: &Path) -> Result<String> {
    let path = root.join("etc/os-release");
    let text = fs::read_to_string(&path).on("read", &path)?;
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.map(|name| name.trim_matches('"').to_owned()).ok_or_else(|| Error::Unusable {
        what: format!("{} has no VERSION_CODENAME", path.display()),
        advice: "the lab needs a Debian 12 or 13 host",
    })
}

fn all(root: &Path) -> Result<Vec<Source>> {
    let mut files = vec![root.join("etc/apt/sources.list")];
    let parts = root.join("etc/apt/sources.list.d");
    if let Ok(entries) = fs::read_dir(&parts) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        sources.extend(of_file(&file).on("read", &file)?);
    }
    Ok(sources)
}

fn of_file(path: &PathBuf) -> io::Result<Vec<Source>> {
    let parse = match path.extension().and_then(|extension| extension.to_str()) {
        Some("list") => one_line,
        Some("sources") => deb822,
        _ => return Ok(Vec::new()),
    };
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The first source that is the release's own main archive.
fn debian_main<'a>(sources: &'a [Source], codename: &str) -> Option<&'a Source> {
    sources.iter().find(|source| {
        let is_release = source.suite == codename || RELEASE_NAMES.contains(&&*source.suite);
        is_release && source.components.iter().any(|component| component == "main")
    })
}

/// `deb [options] URI SUITE COMPONENT...`, one to a line.
fn one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<Source> {
    let entry = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
    // Options stand in brackets and may hold spaces.
    let entry = match entry.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.1,
        None => entry,
    };
    let mut words = entry.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source { uri, suite, components: words.collect() })
}

/// Stanzas of `Field: value`, one source for each URI and suite.
fn deb822(text: &str) -> Vec<Source> {
    let uncommented: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    uncommented.split(|line| line.trim().is_empty()).flat_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Vec<Source> {
    let words = |name: &str| -> Vec<String> { field(lines, name).collect() };
    let binary = words("types").iter().any(|word| word == "deb");
    let enabled = !words("enabled").iter().any(|word| word == "no" || word == "false");
    if !binary || !enabled {
        return Vec::new();
    }
    let (suites, components) = (words("suites"), words("components"));
    let of_uri = |uri: String| {
        let source = |suite: &String| Source {
            uri: uri.clone(),
            suite: suite.clone(),
            components: components.clone(),
        };
        suites.iter().map(source).collect::<Vec<_>>()
    };
    words("uris").into_iter().flat_map(of_uri).collect()
}

/// The words of a field, with its continuation lines; field names know no case.
fn field<'a>(lines: &'a [&str], name: &str) -> impl Iterator<Item = String> + use<'a> {
    let named = |line: &&str| {
        line.split_once(':').is_some_and(|(field, _)| field.trim().eq_ignore_ascii_case(name))
    };
    let start = lines.iter().position(|line| !line.starts_with([' ', '\t']) && named(line));
    let first = start.map(|at| lines[at].split_once(':').map_or("", |(_, value)| value));
    let more = lines[start.map_or(lines.len(), |at| at + 1)..].iter().copied();
    let continuation = more.take_while(|line| line.starts_with([' ', '\t']));
    first.into_iter().chain(continuation).flat_map(str::split_whitespace).map(str::to_owned)
}

/// Debian's cloud images point apt at a file that lists mirrors. debootstrap cannot follow that.
fn resolve_mirror_list(root: &Path, uri: &str) -> Result<String> {
    let Some(file) = uri.strip_prefix("mirror+file:") else {
        return Ok(uri.to_owned());
    };
    let path = root.join(file.trim_start_matches('/'));
    let text = fs::read_to_string(&path).on("read the mirror list", &path)?;
    first_mirror(&text).map(str::to_owned).ok_or_else(|| Error::Unusable {
        what: format!("the mirror list {} is empty", path.display()),
        advice: "give apt a mirror, as for `apt-get update`",
    })
}

fn first_mirror(text: &str) -> Option<&str> {
    let entries = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    entries.filter_map(|line| line.split_whitespace().next()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const BOOKWORM: (&str, &str) =
        ("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\nVERSION_ID=\"12\"\n");

    #[test]
    fn the_deb822_file_of_a_container_image() {
        let root = host(&[
            BOOKWORM,
            (
                "etc/apt/sources.list.d/debian.sources",
                "# a comment\nTypes: deb\n# in between\nURIs: http://security.example/debian-security\n\
                 Suites: bookworm-security\nComponents: main\n\n\
                 types: deb deb-src\nURIs: http://mirror.example/debian\n\
                 Suites: bookworm\n bookworm-updates\nComponents: main contrib\n",
            ),
        ]);
        assert_eq!(archive(root.path()).unwrap(), "http://mirror.example/debian");
    }

    #[test]
    fn the_one_line_file_of_an_installed_machine_among_add_ons() {
        let root = host(&[
            BOOKWORM,
            (
                "etc/apt/sources.list",
                "# deb cdrom:[Debian]/ bookworm main\n\
                 deb-src http://mirror.example/sources bookworm main\n\
                 deb http://security.example/debian-security bookworm-security main\n\
                 deb [ arch=amd64 signed-by=/some key.gpg ] http://mirror.example/debian/ bookworm main # own\n",
            ),
            (
                "etc/apt/sources.list.d/addon.list",
                "deb http://addon.example/apt addon-bookworm main\n",
            ),
            ("etc/apt/sources.list.d/chat.list", "deb http://chat.example/linux bookworm stable\n"),
            (
                "etc/apt/sources.list.d/old.list.save",
                "deb http://old.example/debian bookworm main\n",
            ),
        ]);
        assert_eq!(archive(root.path()).unwrap(), "http://mirror.example/debian/");
    }

    #[test]
    fn the_mirror_list_of_a_cloud_image() {
        let root = host(&[
            BOOKWORM,
            (
                "etc/apt/sources.list.d/debian.sources",
                "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n",
            ),
            ("etc/apt/mirrors/debian.list", "# ours\n\nhttp://near.example/debian\tpriority:1\n"),
        ]);
        assert_eq!(archive(root.path()).unwrap(), "http://near.example/debian");
    }

    #[test]
    fn a_disabled_source_is_none_and_the_error_says_what_is_needed() {
        let root = host(&[
            BOOKWORM,
            (
                "etc/apt/sources.list.d/debian.sources",
                "Enabled: no\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n",
            ),
        ]);
        let error = archive(root.path()).unwrap_err().to_string();
        assert!(error.contains("bookworm main") && error.contains("Debian 12 or 13"), "{error}");
    }
}
