//! Virtio devices, as their drivers have negotiated them (drivers/virtio/virtio.c: the attributes
//! `device` and `features`).

use crate::{Result, Root};

const DEVICES: &str = "sys/bus/virtio/devices";
/// The device type of a balloon (virtio 1.3, 5.5).
const BALLOON: u32 = 5;
/// `VIRTIO_BALLOON_F_REPORTING`: its driver tells the host which pages are free.
const REPORTING: usize = 5;

/// Names of the balloons that report free pages to the host, such as `virtio2`; none where there is
/// no such device, or no virtio at all.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Garbage`](crate::Error::Garbage).
pub fn free_page_reporters(root: &Root) -> Result<Vec<String>> {
    let names = match root.names(DEVICES) {
        Ok(names) => names,
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut reporters = Vec::new();
    for name in names {
        match reports(root, &name) {
            Ok(true) => reporters.push(name),
            Ok(false) => {}
            // It has gone while this looked.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    reporters.sort();
    Ok(reporters)
}

fn reports(root: &Root, name: &str) -> Result<bool> {
    let kind =
        root.parsed(format!("{DEVICES}/{name}/device"), "a number such as 0x0005", |text| {
            u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
        })?;
    if kind != BALLOON || root.link_name(format!("{DEVICES}/{name}/driver"))?.is_none() {
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

    fn device(fake: &FakeRoot, name: &str, kind: &str, features: &str) {
        fake.put(&format!("{DEVICES}/{name}/device"), &format!("{kind}\n"));
        fake.put(&format!("{DEVICES}/{name}/features"), &format!("{features}\n"));
    }

    fn bind(fake: &FakeRoot, name: &str) {
        let driver = fake.path().join("sys/bus/virtio/drivers/virtio_balloon");
        std::fs::create_dir_all(&driver).unwrap();
        let link = fake.path().join(DEVICES).join(name).join("driver");
        std::os::unix::fs::symlink(driver, link).unwrap();
    }

    #[test]
    fn a_balloon_reports_if_its_driver_has_agreed_to() {
        let fake = FakeRoot::new();
        let found = || free_page_reporters(&fake.root()).unwrap();
        assert_eq!(found(), Vec::<String>::new());
        device(&fake, "virtio0", "0x0001", "11111111");
        device(&fake, "virtio1", "0x0005", "01000000");
        device(&fake, "virtio2", "0x0005", "01000100");
        bind(&fake, "virtio0");
        bind(&fake, "virtio1");
        assert_eq!(found(), Vec::<String>::new(), "no driver has the one that could");
        bind(&fake, "virtio2");
        assert_eq!(found(), ["virtio2"]);
    }

    #[test]
    fn what_is_no_bit_is_garbage() {
        let fake = FakeRoot::new();
        for features in ["01", "00000x00", ""] {
            device(&fake, "virtio1", "0x0005", features);
            let _ = std::fs::remove_file(fake.path().join(DEVICES).join("virtio1/driver"));
            bind(&fake, "virtio1");
            let error = free_page_reporters(&fake.root()).unwrap_err();
            assert!(matches!(error, Error::Garbage { .. }), "{features:?}: {error}");
        }
    }
}
