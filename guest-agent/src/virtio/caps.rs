//! Where the four virtio structures lie, from the PCI capability list (virtio 1.3, 4.1.4).

/// One structure's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Base address register, 0 to 5.
    pub bar: u8,
    /// Offset in it, in bytes.
    pub offset: u32,
    /// Length, in bytes.
    pub length: u32,
}

/// The places of all structures that this driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Common configuration.
    pub common: Place,
    /// Notifications.
    pub notify: Place,
    /// Bytes between the notification registers of two `queue_notify_off` values.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: Place,
    /// Device configuration.
    pub device: Place,
}

/// Why the configuration space names no usable layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapsError {
    /// Fewer bytes than the standard header: reading more needs CAP_SYS_ADMIN.
    #[error(
        "only {0} bytes of the function's configuration space can be read: run the agent as root"
    )]
    Short(usize),
    /// No capability list.
    #[error("the function has no capability list: it is not a modern virtio device")]
    NoList,
    /// The list does not end.
    #[error("the function's capability list runs in a circle")]
    Circle,
    /// A structure is missing.
    #[error(
        "the function has no virtio structure of type {0} (virtio 1.0): a legacy-only device cannot be driven"
    )]
    Missing(u8),
}

const STATUS: usize = 0x06;
const STATUS_CAP_LIST: u8 = 1 << 4;
const CAP_POINTER: usize = 0x34;
const HEADER_LEN: usize = 0x40;
/// ID of vendor-specific capabilities.
const VENDOR_SPECIFIC: u8 = 0x09;
/// More capabilities than fit 192 bytes of four each cannot be there.
const CAPS_MAX: usize = 48;

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
/// `VIRTIO_PCI_CAP_PCI_CFG`, and its length: a capability with a data register behind it.
const ACCESS: u8 = 5;
const ACCESS_LEN: usize = 20;

impl Layout {
    /// Finds the structures in the first 256 bytes of a configuration space. Of several of one
    /// type the first counts: the device lists them in its order of preference.
    ///
    /// # Errors
    /// [`CapsError`].
    pub fn find(config: &[u8]) -> Result<Self, CapsError> {
        let mut places: [Option<(Place, u32)>; 5] = [None; 5];
        for at in capabilities(config)? {
            if let Some((kind, place, multiplier)) = structure(&config[at..]) {
                places[usize::from(kind)].get_or_insert((place, multiplier));
            }
        }
        Self::of(&places)
    }

    fn of(places: &[Option<(Place, u32)>; 5]) -> Result<Self, CapsError> {
        let place = |kind: u8| places[usize::from(kind)].ok_or(CapsError::Missing(kind));
        let (notify, notify_multiplier) = place(NOTIFY)?;
        Ok(Self {
            common: place(COMMON)?.0,
            notify,
            notify_multiplier,
            isr: place(ISR)?.0,
            device: place(DEVICE)?.0,
        })
    }
}

/// Where in the configuration space the capability lies through which BARs can be read and written
/// without mapping them (virtio 1.3, 4.1.4.9), where the device has it.
///
/// # Errors
/// [`CapsError`].
pub fn access_window(config: &[u8]) -> Result<Option<usize>, CapsError> {
    let is_window = |at: &usize| {
        let cap = &config[*at..];
        cap.len() >= ACCESS_LEN && cap[0] == VENDOR_SPECIFIC && cap[3] == ACCESS
    };
    Ok(capabilities(config)?.into_iter().find(is_window))
}

/// Offsets of all capabilities, in their order; each lies within `config`.
fn capabilities(config: &[u8]) -> Result<Vec<usize>, CapsError> {
    if config.len() < HEADER_LEN {
        return Err(CapsError::Short(config.len()));
    }
    if config[STATUS] & STATUS_CAP_LIST == 0 {
        return Err(CapsError::NoList);
    }
    let (mut found, mut at) = (Vec::new(), usize::from(config[CAP_POINTER] & !3));
    while at != 0 {
        if found.len() == CAPS_MAX {
            return Err(CapsError::Circle);
        }
        let next = config.get(at + 1).ok_or(CapsError::Short(config.len()))?;
        found.push(at);
        at = usize::from(next & !3);
    }
    Ok(found)
}

/// The virtio structure that a capability names: `struct virtio_pci_cap`, and behind that of
/// notifications the multiplier.
fn structure(cap: &[u8]) -> Option<(u8, Place, u32)> {
    let u32_at =
        |at: usize| cap.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (id, kind, bar) = (*cap.first()?, *cap.get(3)?, *cap.get(4)?);
    if id != VENDOR_SPECIFIC || !(COMMON..=DEVICE).contains(&kind) || bar > 5 {
        return None;
    }
    let place = Place { bar, offset: u32_at(8)?, length: u32_at(12)? };
    let multiplier = if kind == NOTIFY { u32_at(16)? } else { 0 };
    Some((kind, place, multiplier))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The configuration space of QEMU's vhost-user device, as far as it matters: an MSI-X
    /// capability in front, then the five virtio ones.
    pub(crate) fn qemu_config() -> Vec<u8> {
        let mut config = vec![0; 256];
        config[STATUS] = STATUS_CAP_LIST;
        config[CAP_POINTER] = 0x40;
        config[0x40..0x43].copy_from_slice(&[0x11, 0x50, 0]);
        for (n, kind) in [5_u8, DEVICE, ISR, COMMON, NOTIFY].into_iter().enumerate() {
            let at = 0x50 + 0x14 * n;
            let next = if kind == NOTIFY { 0 } else { (at + 0x14) as u8 };
            let offset = match kind {
                ISR => 0x1000_u32,
                DEVICE => 0x2000,
                NOTIFY => 0x3000,
                _ => 0,
            };
            config[at..at + 5].copy_from_slice(&[VENDOR_SPECIFIC, next, 0x14, kind, 2]);
            config[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
            config[at + 12..at + 16].copy_from_slice(&0x1000_u32.to_le_bytes());
            config[at + 16..at + 20].copy_from_slice(&4_u32.to_le_bytes());
        }
        config
    }

    #[test]
    fn finds_the_structures_of_qemus_device() {
        let place = |offset| Place { bar: 2, offset, length: 0x1000 };
        let layout = Layout {
            common: place(0),
            notify: place(0x3000),
            notify_multiplier: 4,
            isr: place(0x1000),
            device: place(0x2000),
        };
        assert_eq!(Layout::find(&qemu_config()), Ok(layout));
    }

    #[test]
    fn what_is_missing_is_named() {
        let config = qemu_config();
        assert_eq!(Layout::find(&config[..32]), Err(CapsError::Short(32)));
        assert_eq!(Layout::find(&config[..64]), Err(CapsError::Short(64)));
        assert_eq!(Layout::find(&[0; 256]), Err(CapsError::NoList));
        let mut legacy = config.clone();
        legacy[0x41] = 0;
        assert_eq!(Layout::find(&legacy), Err(CapsError::Missing(NOTIFY)));
        let mut circle = config;
        circle[0x41] = 0x40;
        assert_eq!(Layout::find(&circle), Err(CapsError::Circle));
    }

    #[test]
    fn the_window_is_found_where_there_is_one() {
        let mut config = qemu_config();
        assert_eq!(access_window(&config), Ok(Some(0x50)));
        config[0x53] = DEVICE;
        assert_eq!(access_window(&config), Ok(None));
        assert_eq!(access_window(&[0; 256]), Err(CapsError::NoList));
    }

    proptest! {
        #[test]
        fn no_configuration_space_panics(mut config in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(status) = config.get_mut(STATUS) { *status |= STATUS_CAP_LIST; }
            let _ = Layout::find(&config);
            let _ = access_window(&config);
        }
    }
}
