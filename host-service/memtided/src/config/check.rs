//! Do the VMs make sense, each by itself and beside the others?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memtide_policy::host::Limits;
use memtide_units::ByteSize;

use super::{ConfigError, DEFAULT_MIN, Device, Draft, VmConfig};

/// Longest name of a VM: it becomes part of file names and of table columns.
const NAME_MAX: usize = 64;
/// `sockaddr_un.sun_path` with its closing zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Checks the path of the API's socket, which was written at `place`.
pub(super) fn api_socket(socket: &Path, place: &str) -> Result<(), ConfigError> {
    path("socket", socket).map_err(|message| value(place, message))
}

/// Checks all VMs; `api` is the path that none of them may use.
pub(super) fn vms(drafts: Vec<Draft>, api: &Path) -> Result<Vec<VmConfig>, ConfigError> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut sockets: BTreeMap<PathBuf, String> = BTreeMap::new();
    sockets.insert(api.into(), "memtided's own API".into());
    let mut checked = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let place = draft.place.clone();
        let vm = one(draft).map_err(|message| value(&place, message))?;
        if let Some(other) = names.insert(vm.name.clone(), place.clone()) {
            let message =
                format!("name: {:?} is taken by another VM ({other}): rename one of them", vm.name);
            return Err(value(&place, message));
        }
        claim(&mut sockets, &vm).map_err(|message| value(&place, message))?;
        checked.push(vm);
    }
    Ok(checked)
}

fn value(place: &str, message: String) -> ConfigError {
    ConfigError::Value { place: place.into(), message }
}

fn one(draft: Draft) -> Result<VmConfig, String> {
    name(&draft.name)?;
    let limits = limits(draft.min, draft.max)?;
    if let Some(socket) = &draft.vhost_socket {
        path("vhost_socket", socket)?;
    }
    let control = match (&draft.control, &draft.vhost_socket) {
        (Some(control), _) => control.clone(),
        (None, Some(socket)) => beside(socket),
        (None, None) => {
            return Err("control: the device's control socket is not named: add \
                        control = \"/run/memtide/NAME.sock.ctl\""
                .into());
        }
    };
    path("control", &control)?;
    if let Some(qmp) = &draft.qmp {
        path("qmp", qmp)?;
    }
    let device = match (draft.start, draft.vhost_socket) {
        (true, Some(vhost_socket)) => Device::Start { vhost_socket },
        (true, None) => {
            return Err("vhost_socket: device = \"start\" needs the socket that the VMM connects \
                        to: add vhost_socket = \"/run/memtide/NAME.sock\""
                .into());
        }
        (false, _) => Device::Adopt,
    };
    Ok(VmConfig { name: draft.name, limits, control, device, qmp: draft.qmp })
}

fn name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty()
        || name.len() > NAME_MAX
        || name.starts_with('.')
        || !name.chars().all(allowed)
    {
        return Err(format!(
            "name: {name:?} is no name for a VM: use 1 to {NAME_MAX} letters, digits, '.', '_', \
             '-', and no '.' at the start"
        ));
    }
    Ok(())
}

fn limits(min: Option<ByteSize>, max: Option<ByteSize>) -> Result<Limits, String> {
    let max = max.unwrap_or(ByteSize::MAX);
    let min = min.unwrap_or(DEFAULT_MIN.min(max));
    if min.is_zero() {
        return Err("min: a guarantee of nothing lets a guest be squeezed to death: give what it \
                    needs to stay alive, such as 512MiB"
            .into());
    }
    Limits::new(min, max).map_err(|error| format!("min, max: {error}"))
}

fn path(key: &str, path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err(format!(
            "{key}: {:?} is relative, and a service has no directory of its own: write the whole \
             path, from /",
            path.display()
        ));
    }
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(format!(
            "{key}: the path has {length} bytes, a socket's may have {SOCKET_PATH_MAX}: shorten it"
        ));
    }
    Ok(())
}

/// The control socket of a device that was told of no other: what the device itself does.
fn beside(vhost_socket: &Path) -> PathBuf {
    let mut path = vhost_socket.as_os_str().to_owned();
    path.push(".ctl");
    path.into()
}

/// No socket serves two purposes.
fn claim(sockets: &mut BTreeMap<PathBuf, String>, vm: &VmConfig) -> Result<(), String> {
    let vhost = match &vm.device {
        Device::Start { vhost_socket } => Some(("vhost_socket", vhost_socket)),
        Device::Adopt => None,
    };
    let qmp = vm.qmp.as_ref().map(|path| ("qmp", path));
    for (key, path) in vhost.into_iter().chain([("control", &vm.control)]).chain(qmp) {
        let owner = format!("{key} of {}", vm.name);
        if let Some(other) = sockets.insert(path.clone(), owner) {
            return Err(format!(
                "{key}: {} is already the {other}: give each a socket of its own",
                path.display()
            ));
        }
    }
    Ok(())
}
