//! Golden transcripts: scenarios that read like the log of an operator's afternoon.
//!
//! Lines that start with `> ` happen; the lines below each say what the policy answered. Run the
//! tests with `MEMTIDE_BLESS=1` to write the answers anew, then review the difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;

use memtide_units::{ByteSize, Instant};

use super::*;

#[test]
fn transcripts_are_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/host/golden");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "the transcripts are missing from {}", folder.display());
    for path in files {
        let reviewed = std::fs::read_to_string(&path).unwrap();
        let now = replay(&reviewed);
        if std::env::var_os("MEMTIDE_BLESS").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        assert_eq!(now, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

/// Runs every `> ` line of a transcript and writes the answers below it.
fn replay(transcript: &str) -> String {
    let mut stage = Stage::default();
    let mut out = String::new();
    for line in transcript.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            out.push_str(&stage.perform(command));
        } else if line.starts_with('#') || line.is_empty() {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

struct Stage {
    now: Instant,
    ledger: Ledger,
    gate: Gate,
    targets: TargetPolicy,
    balloons: BTreeMap<VmId, Target>,
    budget: Budget,
    memory: HostMemory,
    names: Vec<String>,
}

impl Default for Stage {
    fn default() -> Self {
        let (total, available) = (ByteSize::from_gib(64), ByteSize::from_gib(60));
        Self {
            now: Instant::default(),
            ledger: Ledger::default(),
            gate: Gate::default(),
            targets: TargetPolicy::default(),
            balloons: BTreeMap::new(),
            budget: Budget::Host,
            memory: HostMemory { total, available },
            names: Vec::new(),
        }
    }
}

fn size(text: &str) -> ByteSize {
    text.parse().unwrap()
}

impl Stage {
    fn perform(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["budget", "host"] => self.budget = Budget::Host,
            ["budget", bytes] => self.budget = Budget::Given(size(bytes)),
            ["available", bytes] => self.memory.available = size(bytes),
            ["pass", seconds] => {
                let ms = seconds.parse::<u64>().unwrap() * 1000;
                self.now = Instant::from_millis(self.now.as_millis() + ms);
            }
            ["vm", name, rest @ ..] => self.open(name, rest),
            [name, "connects", rest @ ..] => {
                let holdings = holdings(rest);
                self.ledger.observed(self.vm(name), holdings);
            }
            [name, "is", "lost"] => {
                self.ledger.lost(self.vm(name));
                self.gate.lost(self.vm(name));
            }
            [name, "is", "gone"] => {
                self.ledger.gone(self.vm(name));
                self.gate.forgotten(self.vm(name));
            }
            [name, verb, rest @ ..] => self.guest_does(self.vm(name), verb, rest),
            other => panic!("what is {other:?}?"),
        }
        self.step()
    }

    fn open(&mut self, name: &str, words: &[&str]) {
        let value = |key: &str| {
            words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(size)
        };
        let (min, max) = (value("min").unwrap_or_default(), value("max").unwrap_or(ByteSize::MAX));
        self.names.push(name.to_string());
        self.ledger.open(self.vm(name), Limits::new(min, max).unwrap());
    }

    fn guest_does(&mut self, vm: VmId, verb: &str, rest: &[&str]) {
        match (verb, rest) {
            ("asks", [ticket, bytes, urgency]) => {
                let urgency = match *urgency {
                    "comfort" => Urgency::Comfort,
                    "pressure" => Urgency::Pressure,
                    _ => Urgency::Emergency,
                };
                let (ticket, bytes) = (ticket.parse().unwrap(), size(bytes));
                self.gate.asked(Ask { vm, ticket, bytes, urgency, since: self.now });
            }
            ("fetches", [ticket]) => {
                let ask = *self.gate.open(vm).unwrap();
                assert_eq!(ask.ticket.to_string(), *ticket);
                let stolen = self.ledger.account(vm).unwrap().holdings.stolen - ask.bytes;
                self.ledger.stolen_is(vm, stolen);
                self.gate.carried_out(vm, ask.ticket);
            }
            ("steals", [bytes]) => {
                let stolen = self.ledger.account(vm).unwrap().holdings.stolen + size(bytes);
                self.ledger.stolen_is(vm, stolen);
            }
            ("cancels", [ticket]) => self.gate.withdrawn(vm, ticket.parse().unwrap()),
            ("inflates", ["to", bytes]) => self.ledger.balloon_is(vm, size(bytes)),
            ("keeps", [bytes]) => self.targets.set_keep(vm, Some(size(bytes))),
            other => panic!("what is {other:?}?"),
        }
    }

    fn step(&mut self) -> String {
        let seen =
            HostObservation { ledger: &self.ledger, budget: self.budget, memory: self.memory };
        let gate = self.gate.step(self.now, &seen);
        let targets = self.targets.step(self.now, &seen, &self.gate, &gate.report);
        let (held, budget) = (self.ledger.committed() + self.gate.promised(), seen.budget_bytes());
        let mut out = format!("  {}s: {held} of {budget}\n", self.now.as_millis() / 1000);
        for Decision { vm, ticket, word } in gate.decisions {
            let word = match word {
                Word::Grant => "grant".to_string(),
                Word::Hold(reason) => format!("hold ({})", reason.name()),
            };
            writeln!(out, "  tell {} about {ticket}: {word}", self.name(vm)).unwrap();
        }
        for Held { ask, waited, obstacle } in gate.report {
            let (name, waited) = (self.name(ask.vm), waited.as_secs());
            writeln!(out, "  {name} waits {waited}s: {obstacle}").unwrap();
        }
        for target in targets.targets {
            let old = self.balloons.insert(target.vm, target);
            if old.map_or(ByteSize::ZERO, |old| old.balloon) != target.balloon {
                let (name, Target { balloon, cause, .. }) = (self.name(target.vm), target);
                writeln!(out, "  balloon of {name}: {balloon} ({cause:?})").unwrap();
            }
        }
        out
    }

    fn vm(&self, name: &str) -> VmId {
        let index = self.names.iter().position(|known| known == name);
        VmId(u32::try_from(index.unwrap_or_else(|| panic!("which VM is {name}?"))).unwrap())
    }

    fn name(&self, vm: VmId) -> &str {
        &self.names[vm.0 as usize]
    }
}

fn holdings(words: &[&str]) -> Holdings {
    let mut holdings = Holdings { answers_targets: true, ..Holdings::NONE };
    for word in words {
        match word.split_once('=') {
            Some(("memory", bytes)) => holdings.memory = size(bytes),
            Some(("stolen", bytes)) => {
                holdings.stolen = size(bytes);
                holdings.unit = ByteSize::from_mib(128);
            }
            Some(("balloon", bytes)) => holdings.balloon = size(bytes),
            _ => panic!("what is {word}?"),
        }
    }
    holdings
}
