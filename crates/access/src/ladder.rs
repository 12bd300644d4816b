//! Times in seven bits: steps of a quarter second at first, of a tenth later, up to some two days.
//!
//! In integers, so that every machine draws the same.

/// Steps of the ladder.
const STEPS: usize = 128;
/// The first steps, in milliseconds.
const FIRST: u64 = 250;
const LADDER: [u64; STEPS] = ladder();

const fn ladder() -> [u64; STEPS] {
    let mut steps = [0; STEPS];
    let mut n = 1;
    while n < STEPS {
        let tenth = steps[n - 1] / 10;
        steps[n] = steps[n - 1] + if tenth > FIRST { tenth } else { FIRST };
        n += 1;
    }
    steps
}

/// The last step that `millis` has reached: 0 to 127.
pub(crate) fn step(millis: u64) -> i8 {
    let reached = LADDER.partition_point(|at| *at <= millis) - 1;
    i8::try_from(reached).unwrap_or(i8::MAX)
}

/// Where a step is, in milliseconds. Of a negative step, that of its size.
pub(crate) fn millis(step: i8) -> u64 {
    LADDER[usize::from(step.unsigned_abs()).min(STEPS - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_kept_to_a_tenth_or_a_quarter_second() {
        for ms in (0..170_000_000).step_by(7_919) {
            let kept = millis(step(ms));
            assert!(kept <= ms && ms - kept <= (ms / 10).max(FIRST), "{ms} became {kept}");
        }
        assert_eq!((step(0), step(249), step(250), step(u64::MAX)), (0, 0, 1, 127));
        assert_eq!((millis(-1), millis(i8::MIN)), (FIRST, millis(127)));
        assert!(millis(127) > 48 * 3_600_000);
    }
}
