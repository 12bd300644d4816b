//! Whether a file is this user's alone.
//!
//! Who can write to the device's memory can have the device read and write all of the guest's: the
//! rings name the pages. So the runtime directory, everything above it, and the file itself must be
//! nobody else's, whatever path the settings name.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Others may write.
const OTHERS_WRITE: u32 = 0o022;
/// In such a directory everybody may make files, and nobody rename or remove another's.
const STICKY: u32 = 0o1000;

/// Checks that nobody but root and this user can change `path`, a directory, or have its name lead
/// somewhere else.
///
/// # Errors
/// PermissionDenied with a sentence; what the kernel says where it cannot be looked at.
pub fn check_directory(path: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Err(refusal(path, "is a symbolic link: name what it leads to"));
    }
    if !found.is_dir() {
        return Err(refusal(path, "is no directory"));
    }
    check_owner(path, &found)?;
    if mode(&found) & OTHERS_WRITE != 0 {
        return Err(refusal(path, "can be written to by others: chmod go-w"));
    }
    // Links further up are followed: what they lead to is what must be safe.
    let whole = path.canonicalize()?;
    for above in whole.ancestors().skip(1) {
        let found = std::fs::symlink_metadata(above)?;
        check_owner(above, &found)?;
        if mode(&found) & OTHERS_WRITE != 0 && mode(&found) & STICKY == 0 {
            return Err(refusal(
                above,
                "can be written to by others, who could put something else in place of what is in it",
            ));
        }
    }
    Ok(())
}

/// Checks that an open file is this user's, and that nobody else can open it or has another name for
/// it.
///
/// # Errors
/// As [`check_directory`].
pub fn check_file(path: &Path, file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    check_owner(path, &found)?;
    if !found.is_file() || found.nlink() != 1 || mode(&found) & 0o077 != 0 {
        return Err(refusal(
            path,
            "is no file of this user's alone (mode 600, one name): remove it",
        ));
    }
    Ok(())
}

fn check_owner(path: &Path, found: &Metadata) -> io::Result<()> {
    let owner = found.uid();
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(refusal(path, &format!("belongs to user {owner}, who could reach all memory through it")))
}

fn mode(found: &Metadata) -> u32 {
    found.permissions().mode()
}

fn refusal(path: &Path, why: &str) -> io::Error {
    let text = format!("{} {why}", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refused(path: &Path) -> String {
        check_directory(path).unwrap_err().to_string()
    }

    #[test]
    fn a_directory_must_be_nobody_elses_all_the_way_up() {
        let dir = tempfile::tempdir().unwrap();
        let (above, own) = (dir.path().join("above"), dir.path().join("above/own"));
        std::fs::create_dir_all(&own).unwrap();
        check_directory(&own).unwrap();
        chmod(&own, 0o775);
        assert!(refused(&own).contains("can be written to by others"));
        chmod(&own, 0o755);
        chmod(&above, 0o777);
        assert!(refused(&own).contains("something else in place"));
        // As /dev/shm and /tmp are.
        chmod(&above, 0o1777);
        check_directory(&own).unwrap();
        let link = dir.path().join("link");
        symlink(&own, &link).unwrap();
        assert!(refused(&link).contains("symbolic link"));
    }

    #[test]
    fn a_file_that_somebody_prepared_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dma");
        let file = File::create(&path).unwrap();
        chmod(&path, 0o600);
        check_file(&path, &file).unwrap();
        std::fs::hard_link(&path, dir.path().join("another")).unwrap();
        assert!(check_file(&path, &file).unwrap_err().to_string().contains("one name"));
        std::fs::remove_file(dir.path().join("another")).unwrap();
        chmod(&path, 0o640);
        check_file(&path, &file).unwrap_err();
    }

    #[test]
    fn another_users_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        if rustix::fs::chown(dir.path(), Some(rustix::fs::Uid::from_raw(65_534)), None).is_err() {
            // Only root may give a directory away, and only root runs the agent.
            return;
        }
        assert!(refused(dir.path()).contains("belongs to user 65534"));
    }
}
