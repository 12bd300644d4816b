//! Waiting on conditions with a deadline.

use std::time::{Duration, Instant};

use crate::error::ScenarioError;

/// Between two looks. Short beside what is waited for, long beside what a look costs.
const EVERY: Duration = Duration::from_millis(200);

/// What a look found.
pub enum Look<T> {
    /// It is there.
    Found(T),
    /// Not yet; the text says what is there instead.
    NotYet(String),
}

/// Looks until `look` finds what it looks for.
///
/// # Errors
/// [`ScenarioError::Deadline`] with what was last seen, or the error of a look.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Look<T>, ScenarioError>,
) -> Result<T, ScenarioError> {
    let start = Instant::now();
    loop {
        crate::interrupt::check()?;
        match look()? {
            Look::Found(found) => return Ok(found),
            Look::NotYet(seen) if start.elapsed() > deadline => {
                return Err(ScenarioError::Deadline {
                    what: what.into(),
                    waited: start.elapsed(),
                    seen,
                });
            }
            Look::NotYet(_) => std::thread::sleep(EVERY),
        }
    }
}

/// As [`until`], for a look that says whether it is so, and what is there.
///
/// # Errors
/// As [`until`].
pub fn until_so(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<(bool, String), ScenarioError>,
) -> Result<(), ScenarioError> {
    until(what, deadline, || {
        let (is_so, seen) = look()?;
        Ok(if is_so { Look::Found(()) } else { Look::NotYet(seen) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_tells_what_was_seen_last() {
        let mut looks = 0;
        let result: Result<(), _> = until("pigs fly", Duration::ZERO, || {
            looks += 1;
            std::thread::sleep(Duration::from_millis(1));
            Ok(Look::NotYet(format!("look {looks}")))
        });
        let text = result.unwrap_err().to_string();
        assert!(text.contains("pigs fly") && text.contains("look 1"), "{text}");
    }
}
