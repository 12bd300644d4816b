//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Decides for a host which VM gets how much memory back, and when.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "memtided", version)]
pub struct Args {
    /// Configuration file; without this option /etc/memtide/memtided.toml is read where it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Socket of the API [default: /run/memtide/memtided.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// What all VMs together may have: a size such as 4GiB, or "host" for what the host has free
    #[arg(long, value_name = "SIZE|host")]
    pub budget: Option<String>,

    /// A VM whose device process runs already; may be given again for each VM
    #[arg(long = "vm", value_name = "name=NAME,control=PATH[,min=SIZE][,max=SIZE][,qmp=PATH]")]
    pub vms: Vec<String>,

    /// The device program for VMs with device = "start" [default: beside memtided, or in PATH]
    #[arg(long, value_name = "FILE")]
    pub device_binary: Option<PathBuf>,

    /// Where limits and targets that were changed by the API are kept over a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/memtide")]
    pub state_dir: PathBuf,

    /// Where the host's memory is read
    #[arg(long, value_name = "FILE", default_value = "/proc/meminfo", hide = true)]
    pub meminfo: PathBuf,

    /// What is logged: off, error, warn, info, debug or trace, or such a filter of the tracing
    /// crate as memtided=debug,info
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_filter)]
    pub log: String,
}

/// A lone word is a target to the tracing crate, and a filter for it logs nothing of memtided: a
/// misspelt level would silence all, errors of the start included.
fn log_filter(text: &str) -> Result<String, String> {
    let is_level = |part: &str| part.trim().parse::<tracing::Level>().is_ok();
    let wrong = |part: &&str| !(part.contains(['=', '[']) || *part == "off" || is_level(part));
    match text.split(',').find(wrong) {
        None => Ok(text.into()),
        Some(part) => Err(format!(
            "{part:?} is no level: write off, error, warn, info, debug or trace, or TARGET=LEVEL"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_misspelt_level_is_refused_and_does_not_silence_the_log() {
        for text in ["debug", "off", "WARN", "memtided=debug,info", "info,hyper=error"] {
            assert_eq!(log_filter(text), Ok(text.into()));
        }
        for text in ["lots", "", "info,verbose"] {
            assert!(log_filter(text).unwrap_err().contains("debug or trace"), "{text}");
        }
    }
}
