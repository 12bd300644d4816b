//! What a run has to tell at its end: numbers, for people and as JSON.

use std::path::Path;

use serde_json::{Map, Value};

/// Named numbers, in the order in which they were told.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    facts: Vec<(String, Value)>,
}

impl Summary {
    /// Tells one.
    pub(crate) fn tell(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.push((name.to_owned(), value.into()));
    }

    /// Prints them, and leaves them as `summary.json` in `logs`.
    pub(crate) fn publish(self, logs: &Path) {
        for (name, value) in &self.facts {
            println!("  {name:.<44} {value}");
        }
        let map: Map<String, Value> = self.facts.into_iter().collect();
        let path = logs.join("summary.json");
        if let Err(error) = std::fs::write(&path, format!("{:#}\n", Value::Object(map))) {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }
}
