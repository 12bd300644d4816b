//! Small files, in and out.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use memtide_lab::guest::protocol::{MAX_FILE_BYTES, Outcome};

/// Reads a file of at most `max` bytes. Works on /proc and /sys, whose files have no length.
pub(crate) fn read(path: &str, max: usize) -> Result<Outcome, String> {
    let describe = |error| format!("{path}: {error}");
    let limit = max.min(MAX_FILE_BYTES);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(describe)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(describe)?;
    if bytes.len() > limit {
        return Err(format!("{path} is longer than {limit} bytes"));
    }
    Ok(Outcome::Content { base64: memtide_lab::guest::protocol::encode(&bytes) })
}

/// Writes a file. One that exists is replaced as a whole; a device or a kernel file is written to.
pub(crate) fn write(path: &str, base64: &str, mode: u32) -> Result<Outcome, String> {
    let bytes = memtide_lab::guest::protocol::decode(base64)?;
    write_bytes(Path::new(path), &bytes, mode).map_err(|error| format!("{path}: {error}"))?;
    Ok(Outcome::Done)
}

fn write_bytes(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    if is_special(path) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&name)?;
    file.write_all(bytes)?;
    fs::rename(&name, path)
}

/// Devices, pipes, and what the kernel shows as files: nothing that a rename could replace.
fn is_special(path: &Path) -> bool {
    let kernels = ["/proc", "/sys", "/dev"].iter().any(|root| path.starts_with(root));
    let device = || {
        fs::metadata(path).is_ok_and(|metadata| {
            let kind = metadata.file_type();
            kind.is_fifo() || kind.is_char_device() || kind.is_block_device()
        })
    };
    kernels || device()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_lab::guest::protocol::encode;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_is_read_and_limits_hold() {
        let dir = std::env::temp_dir().join(format!("memtide-lab-guest-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file").to_string_lossy().into_owned();
        let text = encode(&[0, 200, 10]);
        write(&path, &text, 0o700).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(read(&path, 3).unwrap(), Outcome::Content { base64: text });
        assert!(read(&path, 2).unwrap_err().contains("longer than 2"));
        assert!(write(&path, "*", 0o600).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn kernel_files_without_a_length_are_read() {
        let Outcome::Content { base64 } = read("/proc/self/stat", 4096).unwrap() else { panic!() };
        assert!(!base64.is_empty());
        assert!(is_special(Path::new("/sys/power/state")) && !is_special(Path::new("/etc/x")));
    }
}
