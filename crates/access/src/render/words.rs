//! Numbers as people read them.

/// `45 s`, `12 min 5 s`, `3 h 20 min`.
pub fn time(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 if s.is_multiple_of(60) => format!("{} min", s / 60),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ if (s / 60).is_multiple_of(60) => format!("{} h", s / 3600),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// `12.3 %` of thousandths, of no whole none.
pub(crate) fn share(part: u64, whole: u64) -> String {
    let permille = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(0);
    format!("{}.{} %", permille / 10, permille % 10)
}

/// A bar of up to `width` characters; what is not nothing has one at least.
pub(crate) fn bar(part: u64, whole: u64, width: usize) -> String {
    let long = (u128::from(part) * width as u128 + u128::from(whole) / 2)
        .checked_div(u128::from(whole))
        .unwrap_or(0);
    let long = usize::try_from(long).unwrap_or(width).clamp(usize::from(part > 0), width);
    format!("|{}{}|", "#".repeat(long), " ".repeat(width - long))
}

/// Distances on an axis of `span_ms` that are round in their unit: at most `most` of them.
pub(crate) fn round_step_ms(span_ms: u64, most: u64) -> u64 {
    const STEPS_S: [u64; 16] =
        [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 21_600];
    let fits = |step: &u64| span_ms / (step * 1000) <= most.max(1);
    STEPS_S.into_iter().find(fits).unwrap_or(43_200) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_words() {
        let times = [999, 59_000, 60_000, 725_000, 7_200_000, 7_260_000].map(time);
        assert_eq!(times, ["0 s", "59 s", "1 min", "12 min 5 s", "2 h", "2 h 1 min"]);
        assert_eq!((share(1, 3), share(5, 0)), ("33.3 %".into(), "0.0 %".into()));
    }

    #[test]
    fn bars_are_never_longer_than_their_frame() {
        assert_eq!(bar(0, 10, 4), "|    |");
        assert_eq!(bar(1, 1000, 4), "|#   |");
        assert_eq!(bar(u64::MAX, 1, 4), "|####|");
        assert_eq!(bar(5, 0, 4), "|#   |");
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(round_step_ms(720_000, 6), 120_000);
        assert_eq!(round_step_ms(86_400_000, 6), 14_400_000);
        assert_eq!(round_step_ms(1, 6), 1_000);
        assert_eq!(round_step_ms(u64::MAX, 6), 43_200_000);
    }
}
