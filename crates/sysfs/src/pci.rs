//! PCI functions: finding one, and handing it from one driver to another
//! (Documentation/ABI/testing/sysfs-bus-pci). What to bind and when is the caller's to decide.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::optional;
use crate::{Error, Result, Root};

const DEVICES: &str = "sys/bus/pci/devices";

/// Where a function sits: domain, bus, device, function; `0000:00:03.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address: write it like 0000:00:03.0")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> std::result::Result<Self, AddressError> {
        parse_address(text).ok_or_else(|| AddressError(text.into()))
    }
}

fn parse_address(text: &str) -> Option<Address> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>, most: u32| {
        let fits = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| u32::from_str_radix(text, 16).ok()).flatten().filter(|&value| value <= most)
    };
    let byte = |text, digits, most| u8::try_from(hex(text, digits..=digits, most)?).ok();
    Some(Address {
        // Domains of bridges that Linux numbers itself have more than four digits.
        domain: hex(domain, 4..=8, u32::MAX)?,
        bus: byte(bus, 2, 0xff)?,
        device: byte(device, 2, 0x1f)?,
        function: byte(function, 1, 7)?,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// What a function is, and who drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it sits.
    pub address: Address,
    /// Vendor ID; 0x1af4 for virtio.
    pub vendor: u16,
    /// Device ID; for virtio 0x1040 plus the virtio device type, or the transitional 0x1000 to 0x103f.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem device ID; for transitional virtio the virtio device type.
    pub subsystem_device: u16,
    /// The driver's name, where one is bound.
    pub driver: Option<String>,
}

/// All functions, by address. One that vanishes while this reads is left out.
///
/// # Errors
/// [`Error::Missing`]: a kernel without PCI. [`Error::Garbage`].
pub fn list(root: &Root) -> Result<Vec<Function>> {
    let mut functions = Vec::new();
    for name in root.names(DEVICES)? {
        let address =
            name.parse().map_err(|_| Error::garbage(root.path(DEVICES), "PCI addresses", &name))?;
        match read(root, address) {
            Err(error) if error.is_missing() && !root.exists(format!("{DEVICES}/{address}")) => {}
            function => functions.push(function?),
        }
    }
    functions.sort_by_key(|function| function.address);
    Ok(functions)
}

/// One function.
///
/// # Errors
/// [`Error::Missing`]: no such function. [`Error::Garbage`].
pub fn read(root: &Root, address: Address) -> Result<Function> {
    let id = |file: &str| {
        root.parsed(format!("{DEVICES}/{address}/{file}"), "an ID such as 0x1af4", |text| {
            u16::from_str_radix(text.strip_prefix("0x")?, 16).ok()
        })
    };
    Ok(Function {
        address,
        vendor: id("vendor")?,
        device: id("device")?,
        subsystem_vendor: id("subsystem_vendor")?,
        subsystem_device: id("subsystem_device")?,
        driver: driver(root, address)?,
    })
}

/// The bound driver's name: the only way to know whether [`probe_drivers`] did anything.
///
/// # Errors
/// [`Error::Io`].
pub fn driver(root: &Root, address: Address) -> Result<Option<String>> {
    root.link_name(format!("{DEVICES}/{address}/driver"))
}

/// Says which driver may bind to the function from now on, whatever the IDs that it knows; `None`
/// lifts that. Nothing is bound or unbound by it, except that loading the named module binds it.
///
/// # Errors
/// [`Error::Missing`], [`Error::Refused`].
pub fn set_driver_override(root: &Root, address: Address, driver: Option<&str>) -> Result<()> {
    // An empty write(2) never reaches the kernel's handler: a lone newline is what clears it.
    root.write(format!("{DEVICES}/{address}/driver_override"), driver.unwrap_or("\n"))
}

/// The driver that alone may bind to the function, where somebody has said so.
///
/// # Errors
/// [`Error::Missing`], [`Error::Io`].
pub fn driver_override(root: &Root, address: Address) -> Result<Option<String>> {
    let text = root.read(format!("{DEVICES}/{address}/driver_override"))?;
    Ok(Some(text.trim()).filter(|name| !matches!(*name, "" | "(null)")).map(str::to_owned))
}

/// Takes the function away from its driver, and waits for the driver to let go: virtio_balloon
/// deflates everything first (0.4 s were seen for 512 MiB).
///
/// # Errors
/// [`Error::Missing`]: no driver is bound. [`Error::Refused`].
pub fn unbind(root: &Root, address: Address) -> Result<()> {
    root.write(format!("{DEVICES}/{address}/driver/unbind"), &address.to_string())
}

/// Has the kernel look for a driver. It succeeds also where none was found: see [`driver`].
///
/// # Errors
/// [`Error::Refused`].
pub fn probe_drivers(root: &Root, address: Address) -> Result<()> {
    root.write("sys/bus/pci/drivers_probe", &address.to_string())
}

/// The file that maps base address register `bar`, 0 to 5. As long as the register's window;
/// absent for a register without one.
pub fn resource_path(root: &Root, address: Address, bar: u8) -> PathBuf {
    root.path(format!("{DEVICES}/{address}/resource{bar}"))
}

/// The file that is the configuration space.
pub fn config_path(root: &Root, address: Address) -> PathBuf {
    root.path(format!("{DEVICES}/{address}/config"))
}

/// The device file through which user space drives the function, such as `/dev/uio0`, or `None`
/// where no UIO driver is bound. The file itself is udev's to make, and may come a little later.
///
/// # Errors
/// [`Error::Io`].
pub fn uio_path(root: &Root, address: Address) -> Result<Option<PathBuf>> {
    let numbers = optional(root.numbers(format!("{DEVICES}/{address}/uio"), "uio"))?;
    let number = numbers.and_then(|numbers| numbers.first().copied());
    Ok(number.map(|number| root.path(format!("dev/uio{number}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use proptest::prelude::*;
    use rustix::io::Errno;

    fn guest() -> (FakeRoot, Address) {
        let fake = FakeRoot::new();
        let balloon = "0000:00:03.0".parse().unwrap();
        fake.add_pci("0000:00:04.0".parse().unwrap(), [0x1af4, 0x1041, 0x1af4, 0x1100], None);
        fake.add_pci(balloon, [0x1af4, 0x1045, 0x1af4, 0x1100], Some("virtio-pci"));
        (fake, balloon)
    }

    #[test]
    fn functions_are_found_by_what_they_are() {
        let (fake, balloon) = guest();
        let functions = list(&fake.root()).unwrap();
        assert_eq!(functions.len(), 2);
        assert_eq!((functions[0].address, functions[0].device), (balloon, 0x1045));
        assert_eq!(functions[0].driver.as_deref(), Some("virtio-pci"));
        assert_eq!(functions[1].driver, None);
    }

    #[test]
    fn a_function_goes_to_user_space_and_back() {
        let (fake, balloon) = guest();
        let root = fake.root();
        fake.add_pci_driver("uio_pci_generic");
        unbind(&root, balloon).unwrap();
        assert_eq!(driver(&root, balloon).unwrap(), None);
        assert!(unbind(&root, balloon).unwrap_err().is_missing());
        set_driver_override(&root, balloon, Some("uio_pci_generic")).unwrap();
        probe_drivers(&root, balloon).unwrap();
        assert_eq!(driver(&root, balloon).unwrap().as_deref(), Some("uio_pci_generic"));
        assert_eq!(driver_override(&root, balloon).unwrap().as_deref(), Some("uio_pci_generic"));
        assert_eq!(uio_path(&root, balloon).unwrap(), Some(root.path("dev/uio0")));
        unbind(&root, balloon).unwrap();
        set_driver_override(&root, balloon, None).unwrap();
        probe_drivers(&root, balloon).unwrap();
        assert_eq!(driver(&root, balloon).unwrap().as_deref(), Some("virtio-pci"));
        assert_eq!(uio_path(&root, balloon).unwrap(), None);
        assert_eq!(driver_override(&root, balloon).unwrap(), None);
    }

    #[test]
    fn probing_succeeds_even_when_nothing_binds() {
        let (fake, balloon) = guest();
        let root = fake.root();
        unbind(&root, balloon).unwrap();
        set_driver_override(&root, balloon, Some("not_loaded")).unwrap();
        probe_drivers(&root, balloon).unwrap();
        assert_eq!(driver(&root, balloon).unwrap(), None);
    }

    #[test]
    fn absent_refused_and_garbled_are_told_apart() {
        assert!(list(&FakeRoot::new().root()).unwrap_err().is_missing());
        let (fake, balloon) = guest();
        fake.refuse("sys/bus/pci/drivers_probe", Errno::PERM);
        let error = probe_drivers(&fake.root(), balloon).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::PERM));
        fake.put(&format!("{DEVICES}/{balloon}/vendor"), "virtio\n");
        assert!(matches!(list(&fake.root()), Err(Error::Garbage { .. })));
    }

    #[test]
    fn files_lie_where_the_kernel_puts_them() {
        let (fake, balloon) = guest();
        let bar = resource_path(&fake.root(), balloon, 2);
        assert!(bar.ends_with("sys/bus/pci/devices/0000:00:03.0/resource2"));
        assert!(config_path(&fake.root(), balloon).ends_with("0000:00:03.0/config"));
    }

    proptest! {
        #[test]
        fn an_address_survives_printing(domain: u32, bus: u8, device in 0_u8..32, function in 0_u8..8) {
            let address = Address { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn reading_never_panics(text in "[0-9a-f:./]{0,16}|.{0,16}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert!(!address.to_string().contains('/'));
            }
        }
    }
}
