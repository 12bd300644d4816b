//! What a measurement is to come to at the least, and whether it did: a row of a table, and of a report.

use std::fmt;

use serde::Serialize;

/// How far a figure may go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// To this, and no further.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
    /// Beyond this.
    MoreThan(f64),
}

impl Limit {
    /// False also for what is no number.
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::MoreThan(less) => value > less,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {}", Short(*most)),
            Self::AtLeast(least) => write!(f, "at least {}", Short(*least)),
            Self::MoreThan(less) => write!(f, "more than {}", Short(*less)),
        }
    }
}

/// What came of a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It was kept.
    Kept,
    /// It was not, and the command fails.
    NotKept,
    /// This measurement does not tell.
    CannotBeTold {
        /// Why.
        because: String,
    },
    /// It is not made for guests such as these; the figure is shown for what it is.
    NotPromised {
        /// Why.
        because: String,
    },
}

/// What is promised of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Promise {
    /// For programs; it stays what it is.
    pub name: &'static str,
    /// What the figure is of, for people.
    #[serde(rename = "of")]
    pub what: &'static str,
    /// Of the figure and its limit: `%`, `times`, `MiB`, or nothing where things are counted.
    pub unit: &'static str,
    /// The limit; absent where it is measured as well, and was not.
    #[serde(flatten)]
    pub limit: Option<Limit>,
}

/// A promise, and whether it was kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// What was promised.
    #[serde(flatten)]
    pub promise: Promise,
    /// What was measured; absent where nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Promise {
    /// Kept or not, by a figure that tells.
    pub(crate) fn judge(self, value: f64) -> Judged {
        let is_kept = self.limit.is_some_and(|limit| limit.is_met_by(value));
        let verdict = if is_kept { Verdict::Kept } else { Verdict::NotKept };
        Judged { promise: self, value: Some(value), verdict }
    }

    /// There is no figure, or it tells nothing.
    pub(crate) fn untold(self, value: Option<f64>, because: impl Into<String>) -> Judged {
        let because = because.into();
        Judged { promise: self, value, verdict: Verdict::CannotBeTold { because } }
    }

    /// The figure need not be within the limit here; where it is, that is kept all the same.
    pub(crate) fn not_promised(self, value: f64, because: impl Into<String>) -> Judged {
        match self.judge(value) {
            judged if judged.verdict == Verdict::Kept => judged,
            judged => {
                Judged { verdict: Verdict::NotPromised { because: because.into() }, ..judged }
            }
        }
    }
}

impl Judged {
    fn figure(&self) -> String {
        let unit = self.promise.unit;
        self.value.map_or("-".into(), |value| format!("{} {unit}", Short(value)).trim_end().into())
    }

    fn limit(&self) -> String {
        let unit = self.promise.unit;
        let limit = self.promise.limit;
        limit.map_or("".into(), |limit| format!("{limit} {unit}").trim_end().into())
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (figure, limit) = (self.figure(), self.limit());
        write!(f, "{:<42}{figure:>11}   {limit:<20}", self.promise.what)?;
        match &self.verdict {
            Verdict::Kept => f.write_str("kept"),
            Verdict::NotKept => f.write_str("NOT KEPT"),
            Verdict::CannotBeTold { because } => {
                write!(f, "cannot be told here,\n    because {because}")
            }
            Verdict::NotPromised { because } => {
                write!(f, "not promised here,\n    because {because}")
            }
        }
    }
}

/// All of them for a table, with a heading.
pub(crate) fn rows(promises: &[Judged]) -> String {
    if promises.is_empty() {
        return String::new();
    }
    let rows: Vec<String> = promises.iter().map(|judged| format!("{judged}\n")).collect();
    format!("\n{:<42}{:>11}   promised\n{}", "promises", "measured", rows.concat())
}

/// Those that were not kept, a sentence each.
pub(crate) fn broken(promises: &[Judged]) -> impl Iterator<Item = String> {
    let broken = promises.iter().filter(|judged| judged.verdict == Verdict::NotKept);
    broken.map(|judged| {
        let (what, figure, limit) = (judged.promise.what, judged.figure(), judged.limit());
        format!("{what}: {figure}, promised was {limit}")
    })
}

/// A number with three digits after the point, or fewer where these say nothing: what is a little beyond a limit
/// should not look as if it were not.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.3}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const SPEED: Promise = Promise {
        name: "speed",
        what: "how fast it goes",
        unit: "%",
        limit: Some(Limit::AtLeast(45.0)),
    };

    /// The verdict on the promise of this name, in a word.
    pub(crate) fn verdict(promises: &[Judged], name: &str) -> &'static str {
        match promises.iter().find(|judged| judged.promise.name == name).unwrap().verdict {
            Verdict::Kept => "kept",
            Verdict::NotKept => "not kept",
            Verdict::CannotBeTold { .. } => "cannot be told",
            Verdict::NotPromised { .. } => "not promised",
        }
    }

    #[test]
    fn a_limit_is_met_at_its_end_or_beyond_it_and_never_by_what_is_no_number() {
        let kept = |limit, value| Promise { limit, ..SPEED }.judge(value).verdict == Verdict::Kept;
        for (limit, met, missed) in [
            (Limit::AtMost(1.0), 1.0, 1.001),
            (Limit::AtLeast(1.0), 1.0, 0.999),
            (Limit::MoreThan(1.0), 1.001, 1.0),
        ] {
            assert!(kept(Some(limit), met), "{limit}");
            assert!(!kept(Some(limit), missed) && !kept(Some(limit), f64::NAN), "{limit}");
        }
        assert!(!kept(Some(Limit::AtMost(1.0)), f64::INFINITY));
        assert!(!kept(None, 0.0), "nobody said how far it may go");
    }

    #[test]
    fn only_what_was_not_kept_is_broken() {
        let judged = [
            SPEED.judge(45.0),
            SPEED.judge(32.25),
            SPEED.untold(Some(3.0), "of the fog"),
            SPEED.not_promised(32.0, "of the road"),
            SPEED.not_promised(46.0, "of the road"),
        ];
        let broken: Vec<String> = broken(&judged).collect();
        assert_eq!(broken, ["how fast it goes: 32.25 %, promised was at least 45 %"]);
        let text = rows(&judged);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].ends_with("45 %   at least 45 %       kept"), "{text}");
        assert!(lines[1].ends_with("NOT KEPT"), "{text}");
        assert!(lines[2].ends_with("cannot be told here,"), "{text}");
        assert_eq!(lines[3], "    because of the fog");
        assert!(lines[4].contains("32 %") && lines[4].ends_with("not promised here,"), "{text}");
        assert!(lines[6].ends_with("kept"), "{text}");
    }

    #[test]
    fn programs_find_the_figure_its_limit_and_the_verdict() {
        let json = serde_json::to_value([SPEED.judge(40.0), SPEED.untold(None, "of the fog")]);
        let expected = serde_json::json!([
            { "name": "speed", "of": "how fast it goes", "unit": "%", "at_least": 45.0,
              "value": 40.0, "verdict": "not_kept" },
            { "name": "speed", "of": "how fast it goes", "unit": "%", "at_least": 45.0,
              "verdict": "cannot_be_told", "because": "of the fog" },
        ]);
        assert_eq!(json.unwrap(), expected);
        assert_eq!(Short(1.001).to_string(), "1.001");
        let open = Promise { limit: None, ..SPEED }.untold(Some(1.0), "of the fog");
        assert!(serde_json::to_value(open).unwrap().get("at_least").is_none());
    }
}
