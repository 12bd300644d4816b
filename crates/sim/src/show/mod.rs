//! What people, and programs, see of a run.

mod chart;
mod json;
mod summary;

pub use chart::chart;
pub use json::json;
pub use summary::{Summary, summary};
