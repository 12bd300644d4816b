//! Types that programs on the host exchange as JSON.
//!
//! [`device`] is spoken between a device process and whoever steers it (memtided, a person with a
//! terminal); [`http`] between memtided and its clients; [`mod@line`] reads both safely. Names here are
//! a promise to users: they change only with a version. The crate knows no socket and no guest bytes.

pub mod device;
pub mod http;
pub mod line;
