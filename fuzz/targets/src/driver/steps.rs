//! What happens.

use arbitrary::Arbitrary;

/// What the device and the driver do.
#[derive(Debug, Arbitrary)]
pub(super) enum Step<'a> {
    /// The driver does what is due.
    Service,
    Post(Post),
    ReportStolen(u8),
    Unreport(u8),
    GreetAgain,
    Look,
    Check,
    Settle,
    /// The device answers what waits as it should.
    Answer {
        verdict: u8,
        reason: u8,
    },
    /// It answers something else.
    AnswerBytes {
        bytes: &'a [u8],
        id: u8,
        len: u32,
        by: i8,
    },
    /// It gives arrays or statistics back, as a plain balloon does.
    GiveBack {
        queue: u8,
        chains: u8,
    },
    /// It gives back what was not there, or not so.
    GiveBackOther {
        queue: u8,
        id: u8,
        by: i8,
    },
    /// It writes where it likes among what it was given.
    Scribble {
        page: u8,
        offset: u16,
        bytes: &'a [u8],
    },
    Config {
        offset: u8,
        bytes: [u8; 4],
    },
    Lie(Lie),
    Wait(u16),
}

#[derive(Debug, Arbitrary)]
pub(super) enum Post {
    Steal(u8),
    Return(u8),
    Taken(u8),
    Cancel,
    Goodbye,
}

#[derive(Debug, Arbitrary)]
pub(super) enum Lie {
    Features(u64),
    RefusesFeatures,
    QueueSize(u16),
    Queues(u16),
    NotifyOffset(u16),
    Broken,
    Generation(u8),
    Honest,
}
