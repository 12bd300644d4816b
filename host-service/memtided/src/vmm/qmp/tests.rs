use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream as Stream};
use std::thread;

use super::*;
use crate::vmm::fake_qmp::FakeQmp;

const SHORT: Duration = Duration::from_millis(150);
const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp.sock");
    (folder, path)
}

/// A peer that says this, whatever it is told, and then nothing more.
fn says(path: &Path, bytes: Vec<u8>) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&bytes);
        thread::sleep(Duration::from_secs(2));
    });
}

async fn error(path: &Path) -> String {
    match Conversation::open(path, SHORT).await {
        Ok(_) => panic!("it was understood"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_command_is_answered_between_events() {
    let (_folder, path) = folder();
    let qmp = FakeQmp::start(&path);
    let mut conversation = Conversation::open(&path, PATIENCE).await.unwrap();
    let answer = conversation.execute("query-memory-devices", json!({})).await.unwrap();
    assert_eq!(answer, json!([]));
    let error = conversation.execute("make-coffee", json!({})).await.unwrap_err().to_string();
    for word in ["make-coffee", "qmp.sock", "CommandNotFound"] {
        assert!(error.contains(word), "{word} is missing from: {error}");
    }
    conversation.execute("query-memory-devices", json!({})).await.expect("it goes on after that");
    assert_eq!(qmp.heard()[0]["execute"], "qmp_capabilities");
}

#[tokio::test]
async fn a_monitor_that_somebody_holds_says_so_with_the_remedy() {
    let (_folder, path) = folder();
    let _qmp = FakeQmp::start(&path);
    let other = Stream::connect(&path).unwrap();
    let error = error(&path).await;
    for word in ["qmp.sock", "greeting", "one client", "-qmp unix:PATH,server=on,wait=off"] {
        assert!(error.contains(word), "{word} is missing from: {error}");
    }
    drop(other);
    Conversation::open(&path, PATIENCE).await.expect("it is free now");
}

#[tokio::test]
async fn nobody_there_is_told() {
    let (_folder, path) = folder();
    let text = error(&path).await;
    assert!(text.contains("connecting") && text.contains("is the VM running"), "{text}");
    drop(UnixListener::bind(&path).unwrap());
    let text = error(&path).await;
    assert!(text.contains("qmp.sock") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn strange_words_are_refused_and_never_end_in_waiting() {
    let event = b"{\"event\": \"RESUME\", \"timestamp\": {}}\r\n";
    let stray = b"{\"return\": {}, \"id\": 77}\r\n";
    let loud = b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"a\\u001b[31m\\nb\"}}\r\n";
    let after = |bytes: &[u8]| [GREETING, bytes].concat();
    let cases: &[(Vec<u8>, &str)] = &[
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "not understood"),
        (b"{\"return\": {}}\r\n".to_vec(), "without a greeting"),
        (vec![b' '; LINE_MAX + 2], "without ending a line"),
        (after(&vec![b'{'; LINE_MAX + 2]), "without ending a line"),
        (after(stray), "what was not asked"),
        (after(&event.repeat(LINES_MAX as usize + 1)), "without end"),
        (after(event), "no answer in time"),
        (after(loud), "a[31mb (GenericError)"),
    ];
    for (bytes, word) in cases {
        let (_folder, path) = folder();
        says(&path, bytes.clone());
        let patience = if *word == "no answer in time" { SHORT } else { PATIENCE };
        let error = Conversation::open(&path, patience).await.err().unwrap().to_string();
        assert!(error.contains(word), "{word:?} is missing from: {error}");
    }
}
