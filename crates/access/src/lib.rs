//! What was touched where and when: what the views of `memtide-agent` and `memtide` show.
//!
//! ```text
//! Snapshot (DAMON's regions, what is free, what is stolen)
//!    │ Digest::of: the free, the stolen and the kernel's own told apart from what is merely idle
//!    ▼
//! Digest (some 1 KiB: a cell per piece of memory, amounts, the tail of idle times)
//!    │ History::observe
//!    ▼
//! History (a bounded picture of a day, finest where it is newest)
//!    │ Grid::of, WorkingSet::of
//!    ▼
//! render (terminal, SVG, PNG: the feature of that name)
//! ```
//! It reads no file and no clock; times are milliseconds of a clock that the caller keeps to. What it
//! reads back from a file or a guest it checks, and bounds.

mod cell;
mod digest;
mod file;
mod grid;
mod history;
mod ladder;
mod layout;
mod region;
mod remap;
#[cfg(feature = "render")]
pub mod render;
mod working_set;

pub use cell::{Cell, Kind, Shade};
pub use digest::{Amounts, CellsError, Digest, Mix, PERCENTS, Snapshot, TAIL_S, WORKING_SET_AGE};
pub use file::{FILE_MAX, FileError};
pub use grid::{Grid, Row, Size};
pub use history::{Column, History, Limits, Spread};
pub use layout::{CELLS_MAX, Layout, LayoutError, SPANS_MAX};
pub use region::{Region, Temperature};
pub use working_set::{Heat, HeatColumn, WorkingSet};
