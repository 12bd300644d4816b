//! What the driver says in configuration space: how much is in its balloon, and what it fills free
//! pages with.

use memtide_units::ByteSize;
use memtide_wire::config::{BalloonConfig, ConfigWrite};
use memtide_wire::features;
use zerocopy::little_endian::U32;

use crate::device::{Balloon, Rings, of_pages};
use crate::event::Event;

/// Whose word is `actual`?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ActualOf {
    /// The driver's that runs, or starts.
    #[default]
    ThisDriver,
    /// One's that has stopped. It may go on (a VM that was paused), or another may start anew.
    ThatStopped,
}

/// Does the device know what a guest that acked `PAGE_POISON` fills its free pages with?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Poison {
    /// Not yet, or its driver said so to a process whose place this one has taken.
    #[default]
    Unknown,
    /// Its driver has said so.
    Told,
}

/// What is known of the driver's fields, beside their values.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said {
    actual_of: ActualOf,
    poison: Poison,
}

impl Said {
    /// All rings have stopped.
    pub(crate) fn driver_stopped(&mut self) {
        self.actual_of = ActualOf::ThatStopped;
    }
}

impl Balloon {
    /// Takes a driver's write to configuration space. `poison_val` counts where `PAGE_POISON` was
    /// acked. It is written before `DRIVER_OK` (virtio 1.3, 5.5.6.6.1), when the VMM has not told
    /// yet what was acked, so a device at rest takes it and [`Balloon::set_features`] judges it. While
    /// rings run it is no news where it changes nothing: a VMM writes the whole space back for
    /// another field, with what it last read of this one.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) {
        let BalloonConfig { actual: actual_before, poison_val: poison_before, .. } =
            self.config.balloon;
        let ConfigWrite { actual, poison_val } = self.config.write(offset, data);
        if let Some(pages) = actual.filter(|pages| *pages != actual_before.get()) {
            self.set_actual(pages);
        }
        let Some(value) = poison_val else { return };
        let counts = match self.rings() {
            Rings::Stopped => true,
            _ => self.features() & features::PAGE_POISON != 0 && value != poison_before.get(),
        };
        if counts {
            self.said.poison = Poison::Told;
        } else {
            self.config.balloon.poison_val = poison_before;
        }
    }

    pub(crate) fn set_actual(&mut self, pages: u32) {
        self.config.balloon.actual = U32::new(pages);
        self.said.actual_of = ActualOf::ThisDriver;
        self.events.push(Event::Balloon { actual: of_pages(pages) });
    }

    /// The rings that run now begin at their first entry: a driver has started anew and has no
    /// balloon, whatever the one before it has said. Linux's says so itself only once it inflates;
    /// a guest that reboots would seem to hold its old balloon until then.
    pub fn driver_begins(&mut self) {
        if self.said.actual_of == ActualOf::ThatStopped && self.actual() != ByteSize::ZERO {
            self.set_actual(0);
        }
    }

    /// What the guest fills its free pages with and wants to find in them again; 0 where it does
    /// not, or fills them with zeros. Stays while the rings stop: a VM that is paused goes on with
    /// the same driver, which will not say it again, and to keep pages is always right.
    pub fn poison(&self) -> u32 {
        self.config.balloon.poison_val.get()
    }

    /// Has the driver said it? See [`Poison`].
    pub(crate) fn poison_is(&self) -> Poison {
        self.said.poison
    }

    pub(crate) fn set_poison(&mut self, value: u32, poison: Poison) {
        self.config.balloon.poison_val = U32::new(value);
        self.said.poison = poison;
    }

    /// Why reported pages must not be dropped, if they must not.
    pub(crate) fn keeps_reported_pages(&self) -> Option<String> {
        if self.features() & features::PAGE_POISON == 0 {
            return None;
        }
        match (self.said.poison, self.poison()) {
            (Poison::Unknown, _) => {
                Some("it is not known what the guest fills free pages with".into())
            }
            (Poison::Told, 0) => None,
            (Poison::Told, value) => Some(format!("the guest wants to find {value:#010x} in them")),
        }
    }
}
