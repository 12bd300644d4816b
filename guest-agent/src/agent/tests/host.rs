//! The host of a test: how it answers, and what it believes.

use super::*;

impl World {
    pub(super) fn host(&mut self) {
        while self.answers {
            let given = self.device.take_pages(1);
            if !given.is_empty() {
                self.in_balloon(&given);
                self.turn(Woken::default());
                continue;
            }
            if self.device.take_statistics().is_some() {
                self.statistics += 1;
            }
            if self.loses_steals && matches!(self.device.waiting(), Some(Request::Steal(_))) {
                return;
            }
            let (returns, steals, ejects) = (self.returns, self.steals, self.ejects);
            let (hellos, min) = (self.hellos, self.guaranteed);
            let plugs = self.agrees;
            let respond = |sequence, request: &Request| match request {
                Request::Return(_) => answer(sequence, returns),
                Request::Steal(_) => answer(sequence, steals),
                Request::Hello(_) => Response { min, ..answer(sequence, hellos) },
                Request::Eject(_) => answer(sequence, ejects),
                Request::Plug(_) => answer(sequence, plugs),
                _ => Response { min, ..answer(sequence, Verdict::Ok) },
            };
            let Some((_, request)) = self.device.answer(respond) else { return };
            if let Request::Plug(ranges) = &request {
                self.was_asked_to_plug(ranges);
            }
            if !matches!(request, Request::Telemetry(_)) {
                self.heard.push(request);
            }
            self.turn(Woken::default());
        }
    }

    fn was_asked_to_plug(&mut self, ranges: &[GpaRange]) {
        self.policies.push(self.fake.get("sys/devices/system/memory/auto_online_blocks"));
        let first = blocks(ranges).next().unwrap();
        for name in &self.plugs {
            if self.agrees == Verdict::Ok && self.fake.dimm_of(name).contains(&BlockId(first)) {
                self.fake.plug_in_dimm(name);
            }
        }
    }

    /// Pages go into a plain balloon and come out; what is online is never in it.
    pub(super) fn in_balloon(&mut self, given: &[Given]) {
        for Given { way, frames } in given {
            let block = u64::from(frames[0].0) / PAGES as u64;
            match way {
                Way::Inflate => *self.pages.entry(block).or_default() += frames.len(),
                Way::Deflate => *self.pages.entry(block).or_default() -= frames.len(),
            }
            assert_eq!(self.state(block).0, State::Offline, "{way:?} of block {block}");
        }
    }

    /// Blocks that are in a plain balloon, whole.
    pub(super) fn inflated(&self) -> BTreeSet<u64> {
        self.pages.iter().filter(|(_, pages)| **pages == PAGES).map(|(block, _)| *block).collect()
    }

    /// What the host believes to be stolen, from all that it was told and answered well.
    pub(super) fn believed(&self) -> BTreeSet<u64> {
        let mut stolen = BTreeSet::new();
        for request in &self.heard {
            match request {
                Request::Hello(hello) => {
                    stolen = blocks(&hello.stolen).chain(blocks(&hello.ejected)).collect();
                }
                Request::Steal(ranges) if self.steals == Verdict::Ok => {
                    stolen.extend(blocks(ranges));
                }
                Request::Return(asked) if self.returns == Verdict::Ok => {
                    blocks(&asked.ranges).for_each(|block| _ = stolen.remove(&block));
                }
                Request::Taken(ranges) => {
                    blocks(ranges).for_each(|block| _ = stolen.remove(&block));
                }
                _ => {}
            }
        }
        stolen
    }
}
