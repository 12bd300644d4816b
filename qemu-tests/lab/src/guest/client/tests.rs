use std::io::{BufReader, Write};
use std::thread;

use super::*;
use crate::guest::protocol::{MAX_LINE_BYTES, Message, Request, Stream, read_line, to_line};

const SOON: Duration = Duration::from_secs(5);

/// A runner of which the test plays the part.
struct Fake {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Fake {
    fn pair() -> (Guest, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = Guest::new("test", ours).unwrap();
        let reader = BufReader::new(theirs.try_clone().unwrap());
        (guest, Self { reader, writer: theirs })
    }

    fn say(&mut self, message: &Message) {
        self.writer.write_all(&to_line(message)).unwrap();
    }

    fn next_request(&mut self) -> Request {
        let line = read_line(&mut self.reader, MAX_LINE_BYTES).unwrap().unwrap();
        serde_json::from_slice(&line).unwrap()
    }

    fn reply(&mut self, id: u64, outcome: Outcome) {
        self.say(&Message::Reply { id, outcome });
    }
}

fn ran(stdout: &str) -> Outcome {
    Outcome::Ran { ending: Ending::Code(0), stdout: stdout.into(), stderr: String::new() }
}

#[test]
fn replies_find_their_requests_in_any_order() {
    let (guest, mut fake) = Fake::pair();
    thread::scope(|scope| {
        let ask = |word: &'static str| {
            let guest = guest.clone();
            scope.spawn(move || guest.check(&["echo", word], SOON).unwrap())
        };
        let (one, two) = (ask("one"), ask("two"));
        let mut requests = [fake.next_request(), fake.next_request()];
        requests.reverse();
        for request in requests {
            let Op::Run { argv, .. } = request.op else { panic!("{request:?}") };
            fake.reply(request.id, ran(&argv[1]));
        }
        assert_eq!(one.join().unwrap(), "one");
        assert_eq!(two.join().unwrap(), "two");
    });
}

#[test]
fn a_spawned_program_streams_its_lines_and_its_end() {
    let (guest, mut fake) = Fake::pair();
    thread::scope(|scope| {
        let spawned = scope.spawn(|| guest.spawn("load", &["load", "forever"]).unwrap());
        let request = fake.next_request();
        let line = |line: &str| Message::Line {
            name: "load".into(),
            stream: Stream::Stdout,
            line: line.into(),
        };
        // The first line may overtake the reply.
        fake.say(&line("starting"));
        fake.reply(request.id, Outcome::Done);
        fake.say(&line("ready 42"));
        fake.say(&Message::Exited { name: "load".into(), ending: Ending::Signal(9) });
        let load = spawned.join().unwrap();
        let number = load.wait_line(SOON, |line| line.strip_prefix("ready ").map(str::to_owned));
        assert_eq!(number.as_deref(), Some("42"));
        assert_eq!(load.wait_exit(SOON), Some(Ending::Signal(9)));
        assert_eq!(load.next_event(SOON), None, "nothing comes after the end");
    });
}

#[test]
fn an_unsuccessful_command_shows_what_it_said() {
    let (guest, mut fake) = Fake::pair();
    thread::scope(|scope| {
        let asked = scope.spawn(|| guest.check(&["modprobe", "nothing"], SOON).unwrap_err());
        let request = fake.next_request();
        let outcome = Outcome::Ran {
            ending: Ending::Code(1),
            stdout: String::new(),
            stderr: "not found".into(),
        };
        fake.reply(request.id, outcome);
        let text = asked.join().unwrap().to_string();
        for part in ["test", "modprobe nothing", "exit code 1", "not found"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    });
}

#[test]
fn whoever_waits_when_qemu_ends_is_told_at_once() {
    let (guest, mut fake) = Fake::pair();
    thread::scope(|scope| {
        let asked = scope.spawn(|| guest.run(&["sleep", "1000"], Duration::from_secs(1000)));
        fake.next_request();
        drop(fake);
        assert!(matches!(asked.join().unwrap(), Err(GuestError::Gone { .. })));
        assert!(matches!(guest.read_file("/x"), Err(GuestError::Gone { .. })), "later ones too");
        assert_eq!(guest.wait_hello(Instant::now() + SOON), None);
    });
}

#[test]
fn a_runner_that_starts_anew_fails_what_its_predecessor_had() {
    let (guest, mut fake) = Fake::pair();
    let hello = Message::Hello { kernel: "7.3".into(), uptime_ms: 9000 };
    fake.say(&hello);
    let heard = guest.wait_hello(Instant::now() + SOON).unwrap();
    assert_eq!(heard, Hello { kernel: "7.3".into(), uptime: Duration::from_secs(9) });
    thread::scope(|scope| {
        let asked = scope.spawn(|| guest.run(&["true"], SOON));
        fake.next_request();
        fake.say(&hello);
        assert!(matches!(asked.join().unwrap(), Err(GuestError::Gone { .. })));
    });
}

#[test]
fn files_go_both_ways_and_nonsense_is_passed_over() {
    let (guest, mut fake) = Fake::pair();
    thread::scope(|scope| {
        let read = scope.spawn(|| guest.read_file("/etc/x").unwrap());
        let request = fake.next_request();
        fake.writer.write_all(b"a panic's half line\n").unwrap();
        fake.reply(request.id, Outcome::Content { base64: encode(&[0, 255, 10]) });
        assert_eq!(read.join().unwrap(), [0, 255, 10]);
    });
    let long = vec![0; MAX_FILE_BYTES + 1];
    let error = guest.write_file("/x", &long, 0o644).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
}
