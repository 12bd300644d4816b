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
    #[arg(long = "vm", value_name = "name=NAME,control=PATH[,min=SIZE][,max=SIZE]")]
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

    /// What is logged: error, warn, info, debug, or a filter of the tracing crate
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
}
