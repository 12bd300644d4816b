//! The parts of the measurement, by name.

use std::str::FromStr;

/// One of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A workload that stays as it is, beside the same in a guest that nothing shrinks.
    Steady,
    /// Much memory at once, beside a guest that nothing shrank and one with a balloon that deflates when
    /// memory is out; and what the agent costs at rest.
    Surge,
    /// Guests of fixed sizes.
    Sweep,
}

/// A text that names none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {0:?}: choose from steady, surge, sweep")]
pub struct NoSuchPart(String);

impl FromStr for Part {
    type Err = NoSuchPart;

    fn from_str(text: &str) -> Result<Self, NoSuchPart> {
        let part = Self::ALL.into_iter().find(|part| part.name() == text);
        part.ok_or_else(|| NoSuchPart(text.to_owned()))
    }
}

impl Part {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Steady, Self::Surge, Self::Sweep];

    fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Surge => "surge",
            Self::Sweep => "sweep",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name() {
        assert_eq!(Part::ALL.map(|part| part.name().parse()), Part::ALL.map(Ok));
        assert!("pairs".parse::<Part>().unwrap_err().to_string().contains("choose from steady,"));
    }
}
