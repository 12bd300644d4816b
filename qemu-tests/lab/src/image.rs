//! Disk images from directories: `mke2fs -d`, without root and without mounting anything.

use std::fs::{self, File};
use std::path::Path;

use crate::command::{Log, Tool};
use crate::error::{IoContext, Result};

/// Smallest image made: below this mke2fs has no room for its own tables.
const LEAST_BYTES: u64 = 4 << 20;
/// A file takes whole blocks and an inode: what each adds to its length at most.
const PER_FILE_BYTES: u64 = 4096 + 256;

const ADVICE: &str = "is the disk full?";

/// Makes `image` an ext4 file system with what is in `tree`, just big enough and meant to be
/// mounted read-only: it has no journal.
pub(crate) fn read_only_ext4(tree: &Path, label: &str, image: &Path, log: &Log) -> Result<()> {
    // ext4's own tables take a share of the image; the file is sparse, so room costs nothing.
    let bytes = (weight(tree)? * 5 / 4 + LEAST_BYTES).next_multiple_of(1 << 20);
    sparse(image, bytes)?;
    Tool::new("mke2fs", ADVICE)
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", label])
        .args(["-E", "root_owner=0:0", "-d"])
        .arg(tree)
        .arg(image)
        .run(log)
}

/// Makes (or empties) a file of this size that takes no room yet.
pub(crate) fn sparse(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).on("create", path)?;
    file.set_len(bytes).on("size", path)
}

/// What a tree may take on ext4, without the file system's own tables.
fn weight(tree: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(tree).on("list", tree)? {
        let path = entry.on("list", tree)?.path();
        let metadata = fs::symlink_metadata(&path).on("look at", &path)?;
        bytes += PER_FILE_BYTES;
        bytes += if metadata.is_dir() { weight(&path)? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_room_for_many_small_files_and_a_big_one() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("small")).unwrap();
        for number in 0..500 {
            fs::write(tree.join(format!("small/{number}")), "x").unwrap();
        }
        fs::write(tree.join("big"), vec![7; 3 << 20]).unwrap();
        let image = dir.path().join("image");
        let log = Log::new(dir.path().join("log"));
        read_only_ext4(&tree, "test", &image, &log).unwrap();
        // The magic number of ext2 and its heirs, at byte 56 of the superblock.
        let bytes = fs::read(&image).unwrap();
        assert_eq!(bytes[1024 + 56..][..2], [0x53, 0xef]);
    }
}
