//! Virtio devices, as their drivers have negotiated them (drivers/virtio/virtio.c: the attributes
//! `device` and `features`).

use crate::pci::Address;
use crate::{Result, Root};

const DEVICES: &str = "sys/bus/virtio/devices";
/// The device type of a balloon (virtio 1.3, 5.5).
const BALLOON: u32 = 5;
/// `VIRTIO_BALLOON_F_REPORTING`: its driver tells the host which pages are free.
const REPORTING: usize = 5;

/// The virtio device that a PCI function of virtio's drivers is, such as `virtio2`, if it is one now.
///
/// # Errors
/// [`Error::Missing`](crate::Error::Missing): no such function. [`Error::Io`](crate::Error::Io).
pub fn of_pci(root: &Root, address: Address) -> Result<Option<String>> {
    let names = root.names(format!("sys/bus/pci/devices/{address}"))?;
    let is_device = |name: &String| {
        let number = name.strip_prefix("virtio");
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    Ok(names.into_iter().find(is_device))
}

/// Names of the balloons that report free pages to the host, such as `virtio2`; none where there is
/// no such device, or no virtio at all.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Garbage`](crate::Error::Garbage).
pub fn free_page_reporters(root: &Root) -> Result<Vec<String>> {
    let mut reporters = Vec::new();
    for name in names(root)? {
        match reports(root, &name) {
            Ok(true) => reporters.push(name),
            Ok(false) => {}
            // It has gone while this looked.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reporters)
}

/// All virtio devices, in order; none where there is no virtio.
fn names(root: &Root) -> Result<Vec<String>> {
    match root.names(DEVICES) {
        Ok(mut names) => {
            names.sort();
            Ok(names)
        }
        Err(error) if error.is_missing() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_balloon(root: &Root, name: &str) -> Result<bool> {
    let kind =
        root.parsed(format!("{DEVICES}/{name}/device"), "a number such as 0x0005", |text| {
            u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
        })?;
    Ok(kind == BALLOON)
}

/// Whether some driver has the device.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn has_driver(root: &Root, name: &str) -> Result<bool> {
    Ok(root.link_name(format!("{DEVICES}/{name}/driver"))?.is_some())
}

fn reports(root: &Root, name: &str) -> Result<bool> {
    if !is_balloon(root, name)? || !has_driver(root, name)? {
        return Ok(false);
    }
    root.parsed(
        format!("{DEVICES}/{name}/features"),
        "a 0 or 1 for each feature",
        |text| match text.as_bytes().get(REPORTING)? {
            b'0' => Some(false),
            b'1' => Some(true),
            _ => None,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::fake::FakeRoot;

    #[test]
    fn a_balloon_reports_if_its_driver_has_agreed_to() {
        let fake = FakeRoot::new();
        let found = || free_page_reporters(&fake.root()).unwrap();
        assert_eq!(found(), Vec::<String>::new());
        fake.add_virtio("virtio0", "0x0001", "11111111");
        fake.add_virtio("virtio1", "0x0005", "01000000");
        fake.add_virtio("virtio2", "0x0005", "01000100");
        fake.bind_virtio("virtio0", "virtio_balloon");
        fake.bind_virtio("virtio1", "virtio_balloon");
        assert_eq!(found(), Vec::<String>::new(), "no driver has the one that could");
        fake.bind_virtio("virtio2", "virtio_balloon");
        assert_eq!(found(), ["virtio2"]);
    }

    #[test]
    fn a_function_of_pci_is_one_virtio_device_or_none() {
        let fake = FakeRoot::new();
        let address: Address = "0000:00:04.0".parse().unwrap();
        let place = format!("sys/bus/pci/devices/{address}");
        assert!(of_pci(&fake.root(), address).unwrap_err().is_missing());
        for file in ["vendor", "virtio", "virtiofs/x"] {
            fake.put(&format!("{place}/{file}"), "");
        }
        assert_eq!(of_pci(&fake.root(), address).unwrap(), None);
        fake.put_virtio_on_pci("virtio12", address);
        assert_eq!(of_pci(&fake.root(), address).unwrap().as_deref(), Some("virtio12"));
    }

    #[test]
    fn what_is_no_bit_is_garbage() {
        let fake = FakeRoot::new();
        for features in ["01", "00000x00", ""] {
            fake.add_virtio("virtio1", "0x0005", features);
            let _ = std::fs::remove_file(fake.path().join(DEVICES).join("virtio1/driver"));
            fake.bind_virtio("virtio1", "virtio_balloon");
            let error = free_page_reporters(&fake.root()).unwrap_err();
            assert!(matches!(error, Error::Garbage { .. }), "{features:?}: {error}");
        }
    }
}
