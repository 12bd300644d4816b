//! What programs print: kept to a limit, or passed on line by line.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use memtide_lab::guest::protocol::MAX_OUTPUT_BYTES;

/// Longest line of a spawned program that is passed on, in bytes; the rest becomes further lines.
const MAX_PRINTED_LINE: u64 = 64 * 1024;

/// How long output may take to arrive after its program has ended.
pub(crate) const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// A program's output, collected by a thread while it runs.
pub(crate) struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Collected {
    /// Starts to collect. Everything is read, so that the program never blocks, but only the first
    /// [`MAX_OUTPUT_BYTES`] are kept.
    pub(crate) fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel();
        let kept = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = MAX_OUTPUT_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(&chunk[..length.min(room)]);
            }
            // The receiver may have stopped waiting.
            let _ = end.send(());
        });
        Self { bytes, ended }
    }

    /// What came, after the program has ended. A daemon that it left behind may hold the pipe open
    /// for ever: it is waited for only so long.
    pub(crate) fn take(self, within: Duration) -> String {
        let _ = self.ended.recv_timeout(within);
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Passes each line of a pipe on until it closes.
pub(crate) fn each_line(pipe: impl Read, mut pass_on: impl FnMut(String)) {
    let mut reader = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(MAX_PRINTED_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {
                if line.last() == Some(&b'\n') {
                    line.pop();
                }
                pass_on(String::from_utf8_lossy(&line).into_owned());
            }
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn too_much_output_is_cut_but_read() {
        let collected = Collected::from(Cursor::new(vec![b'x'; MAX_OUTPUT_BYTES + 10_000]));
        assert_eq!(collected.take(Duration::from_secs(10)).len(), MAX_OUTPUT_BYTES);
    }

    #[test]
    fn lines_are_passed_on_whole_and_long_ones_in_parts() {
        let long = "y".repeat(70_000);
        let mut lines = Vec::new();
        each_line(Cursor::new(format!("a\n\n{long}\nlast")), |line| lines.push(line));
        let lengths: Vec<usize> = lines.iter().map(String::len).collect();
        assert_eq!(lengths, [1, 0, 65_536, 70_000 - 65_536, 4]);
    }
}
