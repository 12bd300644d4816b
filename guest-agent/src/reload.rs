//! Settings that are read anew while the agent runs: on SIGHUP, which `memtide-agent reload` sends.
//!
//! An agent that is started anew gives the balloon to the stock driver and takes it back, and has forgotten
//! what it had learned of the guest. So what can be changed under way is: the limits, what they are scaled by,
//! and the gate's deadline. The rest is a matter of the start, and is named.

use std::path::{Path, PathBuf};

use crate::agent::Agent;
use crate::config::{Config, ConfigError, DEFAULT_FILE, Wishes};

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file, where one was named.
    pub file: Option<PathBuf>,
    /// What the command line says, which goes over the file.
    pub line: Wishes,
}

impl Source {
    /// Reads and checks all of them.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(&self) -> Result<Config, ConfigError> {
        self.line.clone().or(Wishes::read(self.file.as_deref())?).check()
    }

    /// What is wrong, where, and what to do about it.
    fn complaint(&self, error: &ConfigError) -> String {
        let file = self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE)).display();
        let what = match error {
            // These say it themselves.
            ConfigError::Unreadable { .. } | ConfigError::Syntax { .. } => error.to_string(),
            ConfigError::Value { .. } | ConfigError::Limits(_)
                if self.line == Wishes::default() =>
            {
                format!("in {file}, {error}")
            }
            ConfigError::Value { .. } | ConfigError::Limits(_) => {
                format!("in {file} or on the agent's command line, {error}")
            }
        };
        format!("{what}; then memtide-agent reload")
    }
}

/// Reads settings anew, and takes over what can be. A file that cannot be used changes nothing.
pub fn reload(source: &Source, started: &Config, agent: &mut Agent) {
    let taken = source.read().and_then(|config| agent.take_settings(&config).map(|()| config));
    match taken {
        Ok(config) => {
            let later = at_next_start(started, &config);
            tracing::info!("the settings were read anew");
            if !later.is_empty() {
                tracing::warn!("{} takes effect at the next start", later.join(", "));
            }
            agent.note_reload(None, later.into_iter().map(String::from).collect());
        }
        Err(error) => {
            let complaint = source.complaint(&error);
            tracing::error!("the settings stay as they were: {complaint}");
            agent.note_reload(Some(complaint), Vec::new());
        }
    }
}

/// Settings that differ from those of the start and cannot be changed under way.
fn at_next_start(started: &Config, now: &Config) -> Vec<&'static str> {
    let Config {
        // These can.
        wish: _,
        scale_by: _,
        gate_deadline: _,
        pci,
        damon,
        conversion,
        overcommit,
        swap,
        plain_balloon,
        interrupt,
        runtime_dir,
        for_tests,
    } = now;
    let all = [
        ("pci", *pci != started.pci),
        ("damon", *damon != started.damon),
        ("convert", *conversion != started.conversion),
        ("overcommit", *overcommit != started.overcommit),
        ("swap", *swap != started.swap),
        ("plain_balloon", *plain_balloon != started.plain_balloon),
        ("interrupt", *interrupt != started.interrupt),
        ("runtime_dir", *runtime_dir != started.runtime_dir),
        ("for-tests", *for_tests != started.for_tests),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(file: &Path, min: Option<&str>) -> Source {
        let line = Wishes { min: min.map(String::from), ..Wishes::default() };
        Source { file: Some(file.into()), line }
    }

    #[test]
    fn the_command_line_goes_over_what_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let min = |source: &Source| source.read().unwrap().wish.min.map(|min| min.mib());
        std::fs::write(&file, "min = \"1GiB\"").unwrap();
        let (plain, with_option) = (source(&file, None), source(&file, Some("512MiB")));
        assert_eq!((min(&plain), min(&with_option)), (Some(1_024), Some(512)));
        std::fs::write(&file, "min = \"2GiB\"").unwrap();
        assert_eq!((min(&plain), min(&with_option)), (Some(2_048), Some(512)));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let complaint = |text: &str, min| {
            std::fs::write(&file, text).unwrap();
            let source = source(&file, min);
            source.complaint(&source.read().unwrap_err())
        };
        let place = file.display().to_string();
        for (text, min, expected) in [
            ("\nminimum = \"1GiB\"", None, "line 2"),
            ("min = \"1GB\"", None, "agent.toml, min: the size"),
            ("max = \"1GiB\"", Some("2GiB"), "or on the agent's command line, min is 2 GiB"),
        ] {
            let said = complaint(text, min);
            assert!(said.contains(expected) && said.contains(&place), "{said}");
            assert!(said.ends_with("; then memtide-agent reload"), "{said}");
        }
    }

    #[test]
    fn what_needs_a_start_is_named() {
        let read = |toml: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("agent.toml");
            std::fs::write(&file, toml).unwrap();
            source(&file, None).read().unwrap()
        };
        let under_way = "min = \"1GiB\"\nmax = \"2GiB\"\npsi_goal = \"1%\"\nscale_by = \"target\"\n\
                         gate_deadline = \"never\"";
        assert_eq!(at_next_start(&read(""), &read(under_way)), Vec::<&str>::new());
        let at_start = "pci = \"0000:00:03.0\"\ndamon = \"off\"\nconvert = false\novercommit = \"leave\"\n\
                        swap = \"off\"\nplain_balloon = \"leave\"\ninterrupt = \"poll\"\n\
                        runtime_dir = \"/run/other\"\n[for-tests]\ncold_after = \"15s\"";
        assert_eq!(at_next_start(&read(""), &read(at_start)).len(), 9);
    }
}
