//! Text and pictures, for people.

mod png;
mod scene;
mod svg;
mod tables;
mod terminal;
mod words;

pub use png::{PngError, png};
pub use svg::svg;
pub use tables::{Paint, working_set};
pub use terminal::heat_map;
pub use words::time;

#[cfg(test)]
pub(crate) mod golden {
    //! What people see, as it was reviewed, in `golden/`. Run the tests with `MEMTIDE_BLESS=1` to
    //! write it anew, then review the difference.

    use std::path::Path;

    pub(crate) fn check(name: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        if std::env::var_os("MEMTIDE_BLESS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{name} is too wide: {line}");
            assert_eq!(line.trim_end(), line, "{name} has blanks at a line's end");
        }
    }
}
