//! An initramfs archive: the kernel's "newc" cpio, as its
//! `Documentation/driver-api/early-userspace/buffer-format.rst` describes it.
//!
//! Written here, in fifty lines, because the `cpio` program wants the files on disk first, owned
//! by root.

/// An archive in the making; everything in it belongs to root.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

/// `S_IFREG` and `S_IFDIR` of stat(2).
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

impl Archive {
    /// Adds a directory; its parents must have been added before.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file that root may read, and everybody may run if `mode` says so.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, content);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let length = u32::try_from(content.len()).expect("no file here comes near 4 GiB");
        let name_length = u32::try_from(path.len() + 1).expect("names are short");
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name, check.
        let fields = [self.inodes, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents end on a multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut archive = Archive::default();
        archive.file("a", 0o755, b"hello");
        let bytes = archive.finish();
        let header = "07070100000001000081ED00000000000000000000000100000000000000050000000000000000\
                      00000000000000000000000200000000";
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0", "name, then content, each padded");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_keep_their_kind() {
        let mut archive = Archive::default();
        archive.directory("bin");
        let text = String::from_utf8(archive.finish()).unwrap();
        assert!(text.contains("000041ED") && text.contains("bin\0"), "{text}");
    }
}
