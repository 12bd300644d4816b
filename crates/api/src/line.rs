//! Bounded JSON lines: how a peer's bytes become messages without trusting it to end a line.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line, in bytes. The largest message is a status with the map of a guest whose every
/// second block is stolen: 2048 ranges (`memtide_wire::block::RANGES_MAX`) of about 40 bytes in three
/// maps, and 509 memory slots of about 100 bytes.
pub const LINE_MAX: usize = 512 << 10;

/// Longest line to a device, in bytes: a call has no lists in it.
pub const CALL_MAX: usize = 4 << 10;

/// A peer's line that is no message.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// No newline within as many bytes as a line may have.
    #[error("the peer sent more than {0} bytes without ending a line")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("a line is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Collects bytes and hands out whole lines.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// How far a newline has been looked for already.
    searched: usize,
    /// Bytes that a line may have.
    max: usize,
}

impl Default for LineBuffer {
    /// For lines of up to [`LINE_MAX`] bytes.
    fn default() -> Self {
        Self::for_lines_of(LINE_MAX)
    }
}

impl LineBuffer {
    /// For lines of up to `max` bytes.
    pub fn for_lines_of(max: usize) -> Self {
        Self { bytes: Vec::new(), searched: 0, max }
    }

    /// Bytes that are kept.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True where no bytes are kept.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Is a whole line there?
    pub fn has_line(&self) -> bool {
        self.bytes[self.searched..].contains(&b'\n')
    }

    /// Adds what was read from the peer.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line as a message; `Ok(None)` where more bytes are needed.
    ///
    /// # Errors
    /// [`LineError::TooLong`] is final: close the connection. After [`LineError::Json`] the bad
    /// line is gone and the next one can be read.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let Some(offset) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n')
        else {
            self.searched = self.bytes.len();
            let is_too_long = self.bytes.len() > self.max;
            return if is_too_long { Err(LineError::TooLong(self.max)) } else { Ok(None) };
        };
        let end = self.searched + offset;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        self.searched = 0;
        if end > self.max {
            return Err(LineError::TooLong(self.max));
        }
        Ok(Some(serde_json::from_slice(&line[..end])?))
    }
}

/// A message as one line, newline included.
///
/// # Errors
/// Of serialisation: none for the types of this crate.
pub fn to_line<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_come_out_however_they_went_in() {
        let mut buffer = LineBuffer::default();
        let mut got = Vec::new();
        for byte in b"1\n22\nx\n3" {
            buffer.extend(&[*byte]);
            match buffer.next_message::<u32>() {
                Ok(Some(n)) => got.push(n),
                Ok(None) => {}
                Err(e) => assert!(matches!(e, LineError::Json(_))),
            }
        }
        buffer.extend(b"\n");
        got.extend(buffer.next_message::<u32>().unwrap());
        assert_eq!(got, [1, 22, 3]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut buffer = LineBuffer::default();
        buffer.extend(&vec![b' '; LINE_MAX + 1]);
        assert!(matches!(buffer.next_message::<u32>(), Err(LineError::TooLong(LINE_MAX))));
        let mut short = LineBuffer::for_lines_of(3);
        short.extend(b"123\n1234\n");
        assert!(short.has_line());
        assert_eq!(short.next_message::<u32>().unwrap(), Some(123));
        assert!(matches!(short.next_message::<u32>(), Err(LineError::TooLong(3))));
        assert!(!short.has_line());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut buffer = LineBuffer::default();
            for chunk in chunks {
                buffer.extend(&chunk);
                while !matches!(buffer.next_message::<u32>(), Ok(None)) {}
            }
        }
    }
}
