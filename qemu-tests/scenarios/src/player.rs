//! The workload in the guest, as the host sees it: the lines it prints, and the word to go on.

use std::collections::VecDeque;

use memtide_units::BlockId;
use serde::Deserialize;

use crate::report::Integrity;

/// What the host needs of the workload's lines; the rest is for people.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    TlbNeighbours {},
    Phase {
        name: String,
    },
    Waiting,
    Progress {
        pages_checked: u64,
        pages_bad: u64,
    },
    PhaseDone {
        pages_checked: u64,
        pages_bad: u64,
    },
    Census {
        blocks: Vec<BlockContents>,
    },
    Error {
        message: String,
    },
    Summary {
        pages_checked: u64,
        pages_bad: u64,
    },
    #[serde(other)]
    Other,
}

/// What of the workload's lay in a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockContents {
    /// Its number.
    pub block: BlockId,
    /// What the guest's kernel did with it, right after the pages were counted.
    pub state: BlockState,
    /// Whether it is in `ZONE_MOVABLE`.
    pub movable: bool,
    /// The workload's pages in it.
    pub pages: u64,
    /// How many of them it had touched in the last minute.
    pub hot: u64,
}

/// What a guest's kernel does with a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockState {
    /// It is in use.
    Online,
    /// Somebody is taking it offline.
    GoingOffline,
    /// It is out of use.
    Offline,
}

/// What the workload has said so far.
#[derive(Clone, Debug, Default)]
pub struct Player {
    /// The phase it is in.
    pub phase: String,
    /// The phase before its last `wait`.
    pub last_grown: String,
    /// It waits for the host's word.
    pub waiting: bool,
    /// It has printed its summary.
    pub finished: bool,
    /// It runs beside neighbours that make accesses visible under emulation.
    pub tlb_neighbour: bool,
    /// Its own counts.
    pub integrity: Integrity,
    /// Where its pages lay, if it was asked to say so: all blocks each time, oldest first, until somebody
    /// takes them.
    pub looks: VecDeque<Vec<BlockContents>>,
    /// What it complained about.
    pub errors: Vec<String>,
    /// Lines that were no JSON, such as a panic's.
    pub noise: Vec<String>,
}

impl Player {
    /// Takes one line of its output.
    pub fn read(&mut self, line: &str) {
        let Ok(event) = serde_json::from_str::<Line>(line) else {
            self.noise.push(line.to_owned());
            return;
        };
        match event {
            Line::TlbNeighbours {} => self.tlb_neighbour = true,
            Line::Phase { name } => {
                let before = std::mem::replace(&mut self.phase, name);
                if before != "wait" {
                    self.last_grown = before;
                }
                self.waiting = false;
            }
            Line::Waiting => self.waiting = true,
            Line::Progress { pages_checked, pages_bad }
            | Line::PhaseDone { pages_checked, pages_bad } => {
                self.integrity = Integrity { pages_checked, pages_bad };
            }
            Line::Summary { pages_checked, pages_bad } => {
                self.integrity = Integrity { pages_checked, pages_bad };
                self.finished = true;
                self.waiting = false;
            }
            Line::Census { blocks } => self.looks.push_back(blocks),
            Line::Error { message } => self.errors.push(message),
            Line::Other => {}
        }
    }

    /// The host has given its word: no longer waiting, until it says so again.
    pub fn went(&mut self) {
        self.waiting = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_a_run() {
        let mut player = Player::default();
        for line in [
            r#"{"event":"start","pid":7,"unix_ms":1,"steps":3,"at_ms":0}"#,
            r#"{"event":"phase","name":"alloc heap 8MiB","at_ms":1}"#,
            r#"{"event":"phase_done","name":"alloc heap 8MiB","duration_ms":5,"slowest_touch_us":1,"owned_bytes":1,"pages_checked":4,"pages_bad":0,"at_ms":6}"#,
            r#"{"event":"phase","name":"wait","at_ms":6}"#,
            r#"{"event":"waiting","at_ms":6}"#,
        ] {
            player.read(line);
        }
        assert!(player.waiting && !player.finished);
        assert_eq!(player.integrity.pages_checked, 4);
        player.read(
            r#"{"event":"summary","outcome":"finished","pages_checked":9,"pages_bad":1,"at_ms":9}"#,
        );
        assert!(player.finished);
        assert_eq!(player.integrity, Integrity { pages_checked: 9, pages_bad: 1 });
        player.read(
            r#"{"event":"census","blocks":[{"block":7,"state":"going_offline","movable":true,"pages":5,"hot":2}],"at_ms":10}"#,
        );
        let (block, state) = (BlockId(7), BlockState::GoingOffline);
        let contents = BlockContents { block, state, movable: true, pages: 5, hot: 2 };
        assert_eq!(player.looks, [vec![contents]]);
        player.read("thread 'main' panicked");
        assert_eq!(player.noise.len(), 1);
    }
}
