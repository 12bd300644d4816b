//! Settings that change while the agent runs.

use super::*;
use crate::config::{Config, Wishes};
use crate::reload::{Source, reload};

impl World {
    /// The settings' file says this now, and an operator has them read anew.
    fn reload(&mut self, toml: &str) {
        let file = self.runtime.path().join("agent.toml");
        std::fs::write(&file, toml).unwrap();
        let source = Source { file: Some(file), line: Wishes::default() };
        reload(&source, &started(), &mut self.agent);
    }

    fn limits(&self) -> [u64; 2] {
        let limits = self.agent.parts.controller.settings().limits;
        [limits.min().mib(), limits.max().mib()]
    }

    /// The limits that the host was told last.
    fn told(&self) -> Option<[u64; 2]> {
        self.heard.iter().rev().find_map(|request| match request {
            Request::Hello(hello) => Some([hello.min.mib(), hello.max.mib()]),
            _ => None,
        })
    }
}

fn started() -> Config {
    Wishes::default().check().unwrap()
}

#[test]
fn a_raised_minimum_comes_back_through_the_gate_and_the_host_hears_of_it() {
    let mut world = World::new();
    world.run(20_000);
    assert_eq!((world.online(), world.told()), (3, Some([384, 1024])));
    world.returns = Verdict::Held(HoldReason::HostBudget);
    world.reload("min = \"640MiB\"\nmax = \"768MiB\"");
    world.run(2_000);
    assert_eq!((world.online(), world.told()), (3, Some([640, 768])), "nothing before the grant");
    world.returns = Verdict::Ok;
    world.run(2_000);
    assert_eq!((world.online(), world.believed()), (5, world.offline()));
    assert_eq!(world.state(3).0, State::Online, "the nearest comes first");
    world.run(60_000);
    assert_eq!(world.online(), 5, "{}", world.agent.note());
    let entries = crate::decisions::read(&world.agent.parts.runtime.decisions()).unwrap();
    let why = "ask 2 back (ticket 1): 384 MiB is online, the minimum is 640 MiB";
    assert!(entries.iter().any(|entry| entry.text == why), "{entries:?}");
}

#[test]
fn a_lowered_maximum_is_met_and_a_raised_one_is_room() {
    let mut world = World::new();
    world.reload("min = \"1GiB\"\nscale_by = \"target\"");
    world.run(20_000);
    assert_eq!(world.online(), 8);
    world.reload("min = \"256MiB\"\nmax = \"640MiB\"\nscale_by = \"target\"");
    world.run(20_000);
    assert_eq!((world.online(), world.believed()), (5, world.offline()));
    world.reload("min = \"256MiB\"\nmax = \"768MiB\"\nscale_by = \"target\"");
    world.run(5_000);
    assert_eq!((world.online(), world.believed()), (6, world.offline()));
}

/// What was learned stays, and so does all that was said before.
#[test]
fn settings_that_cannot_be_used_change_nothing_and_say_why() {
    let mut world = World::new();
    world.run(20_000);
    let hellos = world.agent.counters.hellos;
    for bad in ["min = \"2GiB\"\nmax = \"1GiB\"", "max = 3", "min =", "psi_goal = \"20%\""] {
        world.reload(bad);
        world.run(200);
        let status = crate::status::Status::read(&world.agent.parts.runtime.status()).unwrap();
        let refused = status.reloads.unwrap().refused.unwrap();
        assert!(refused.contains("agent.toml"), "{refused}");
        assert_eq!((world.limits(), world.online()), ([384, 1024], 3), "{bad:?}");
    }
    assert_eq!(world.agent.counters.hellos, hellos);
    world.reload("gate_deadline = \"never\"\nswap = \"off\"\npsi_goal = \"1%\"");
    let reloads = world.agent.status(Instant::from_millis(world.now)).reloads.unwrap();
    assert_eq!((reloads.times, reloads.refused), (5, None));
    assert_eq!(reloads.at_next_start, ["swap"]);
    let settings = world.agent.parts.controller.settings();
    assert_eq!((settings.gate_deadline, settings.limits.psi_goal().0), (None, 10_000));
    // The file names no minimum any more: that is the default.
    assert_eq!(world.limits(), [256, 1024]);
}
