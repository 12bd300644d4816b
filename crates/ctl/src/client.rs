//! One HTTP/1.1 request to memtided per connection, over its unix socket.
//!
//! Enough of HTTP for a server that is known: no redirects, no chunks, nothing kept alive.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use memtide_api::http::Refusal;
use serde::Serialize;

/// memtided answers at once; a host that swaps may take its time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer: a host with a thousand VMs whose maps are long.
const ANSWER_MAX: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error(
        "memtided is not running, or listens elsewhere than on {}: start it with \
         \"systemctl start memtided\", or give its socket with --socket PATH",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket is not for us.
    #[error(
        "you may not use memtided's socket {}: join the group that owns it (memtide, usually), or \
         become root",
        .0.display()
    )]
    Forbidden(PathBuf),
    /// No socket can have this path.
    #[error(
        "no socket can have the path {}: a path of 1 to 107 bytes is needed, give one with \
         --socket PATH",
        .0.display()
    )]
    BadPath(PathBuf),
    /// The socket fails.
    #[error("the connection to memtided on {} failed: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Somebody else answers.
    #[error("what answers on {} is not memtided: {what}", path.display())]
    NotHttp { path: PathBuf, what: String },
    /// memtided said no.
    #[error("{0}")]
    Refused(Refusal),
}

/// A memtided at a socket.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads a resource; its JSON text.
    pub(crate) fn get(&self, path: &str) -> Result<String, ClientError> {
        self.request("GET", path, "")
    }

    /// Changes a resource; its JSON text afterwards.
    pub(crate) fn put<T: Serialize>(&self, path: &str, change: &T) -> Result<String, ClientError> {
        let body = serde_json::to_string(change).map_err(|e| self.io(e.into()))?;
        self.request("PUT", path, &body)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Result<String, ClientError> {
        let answer = self.exchange(method, path, body).map_err(|error| self.io(error))?;
        let (status, body) = parse(&answer)
            .map_err(|what| ClientError::NotHttp { path: self.socket.clone(), what })?;
        if status == 200 {
            return Ok(body.into());
        }
        Err(ClientError::Refused(serde_json::from_str(body).unwrap_or_else(|_| Refusal {
            name: format!("status {status}"),
            message: body.into(),
        })))
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: memtided\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    }

    fn io(&self, source: io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path)
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(path),
            // sockaddr_un has no room for it (unix(7)).
            io::ErrorKind::InvalidInput => ClientError::BadPath(path),
            _ => ClientError::Io { path, source },
        }
    }
}

/// A name as a part of a path: what is no letter, digit, `.`, `_` or `-` as `%XX`.
pub(crate) fn path_segment(name: &str) -> String {
    let mut segment = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

/// Status and body of an answer.
fn parse(answer: &[u8]) -> Result<(u16, &str), String> {
    let text = std::str::from_utf8(answer).map_err(|_| "its answer is no text".to_owned())?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| "its answer is cut off".to_owned())?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok())
        .ok_or_else(|| "its answer is no HTTP/1.1".to_owned())?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    match length {
        Some(length) if length == body.len() => Ok((status, body)),
        Some(length) => Err(format!("its answer has {} of {length} bytes", body.len())),
        None => Err("its answer does not say how long it is".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A client of a server that sends `answer`; also returns what the client asked.
    fn exchange(answer: &'static str) -> (Result<String, ClientError>, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let count = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        let got = Client::new(path).get("/v1/host");
        (got, server.join().unwrap())
    }

    #[test]
    fn asks_and_reads() {
        let (got, asked) = exchange("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        assert_eq!(got.unwrap(), "{}");
        assert!(asked.starts_with("GET /v1/host HTTP/1.1\r\n") && asked.contains("close"));
    }

    #[test]
    fn a_refusal_keeps_its_name_and_message() {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 39\r\n\r\n\
                      {\"name\":\"unknown-vm\",\"message\":\"no web2\"}";
        let (got, _) = exchange(answer.replace("39", "41").leak());
        assert_eq!(got.unwrap_err().to_string(), "unknown-vm: no web2");
    }

    #[test]
    fn other_servers_and_cut_answers_are_told_apart_from_memtided() {
        for (answer, word) in [
            ("hello", "cut off"),
            ("SSH-2.0\r\n\r\n", "no HTTP/1.1"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "2 of 9"),
            ("HTTP/1.1 200 OK\r\n\r\n{}", "how long"),
        ] {
            let said = exchange(answer).0.unwrap_err().to_string();
            assert!(said.contains(word) && said.contains("not memtided"), "{said}");
        }
    }

    #[test]
    fn a_missing_memtided_is_explained() {
        let said = Client::new("/nowhere/sock".into()).get("/v1/host").unwrap_err().to_string();
        assert!(said.contains("systemctl start memtided") && said.contains("--socket"), "{said}");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_explained() {
        let path = format!("/{}", "x".repeat(108));
        let said = Client::new(path.into()).get("/v1/host").unwrap_err().to_string();
        assert!(said.contains("107") && said.contains("--socket"), "{said}");
    }

    #[test]
    fn a_name_cannot_leave_its_part_of_the_path() {
        assert_eq!(path_segment("web-1.a"), "web-1.a");
        assert_eq!(path_segment("../host?x y"), "..%2Fhost%3Fx%20y");
    }
}
