//! By what a guest's clock goes.

use std::str::FromStr;
use std::time::Duration;

use crate::machine::accel::Engine;
use crate::machine::spec::Accel;

/// So many times as long as by its own clock a guest may take by the host's. One that is busy takes five
/// times as long where each has a processor of the host's; others may want these as well.
const PATIENCE: u32 = 15;

/// What makes time pass in a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestClock {
    /// The host's clock: what is slow on the host, because it is emulated or because others work there, is
    /// slow in the guest.
    #[default]
    Host,
    /// The guest's own instructions, a nanosecond each: the same work takes the same time, whatever the host
    /// does meanwhile. All processors of the guest take turns on one of the host's and share the clock, so
    /// where two are busy each does half as much in a second; by the guest's own accounts each was busy for
    /// all of it. While none has anything to do, time passes as on the host.
    Counted,
}

/// A text that names none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no clock {0:?}: choose from host, counted")]
pub struct NoSuchClock(String);

impl FromStr for GuestClock {
    type Err = NoSuchClock;

    fn from_str(text: &str) -> Result<Self, NoSuchClock> {
        match text {
            "host" => Ok(Self::Host),
            "counted" => Ok(Self::Counted),
            _ => Err(NoSuchClock(text.to_owned())),
        }
    }
}

impl GuestClock {
    /// What has to execute a guest with this clock.
    pub fn accelerator(self) -> Accel {
        match self {
            Self::Host => Accel::Auto,
            Self::Counted => Accel::Counted,
        }
    }
}

impl Engine {
    /// For how long the host should wait, by its own clock, for what may take a guest so long by the guest's.
    pub fn patience(self, time: Duration) -> Duration {
        match self {
            Self::Tcg | Self::Kvm => time,
            Self::Counted => time * PATIENCE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name() {
        let found = ["host", "counted"].map(str::parse);
        assert_eq!(found, [Ok(GuestClock::Host), Ok(GuestClock::Counted)]);
        let error = "guest".parse::<GuestClock>().unwrap_err();
        assert_eq!(error.to_string(), "there is no clock \"guest\": choose from host, counted");
    }

    #[test]
    fn whoever_waits_for_a_counted_guest_waits_longer() {
        let minute = Duration::from_secs(60);
        assert_eq!(Engine::Tcg.patience(minute), minute);
        assert!(Engine::Counted.patience(minute) >= 5 * minute);
    }
}
