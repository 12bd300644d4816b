//! DIMMs as QMP describes them (QEMU: qapi/machine.json, `query-memory-devices`), and as it wants
//! them back.

use std::fmt;

use memtide_units::{ByteSize, Gpa, GpaRange};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// DIMMs of one VM at most: QEMU has no more slots (`ACPI_MAX_RAM_SLOTS`).
pub(crate) const DIMMS_MAX: usize = 256;
/// Where QEMU keeps the objects of `-object` and `object-add`.
const OBJECTS: &str = "/objects/";
/// Longest name taken, in bytes. QEMU has no limit; people stay far below.
const NAME_MAX: usize = 128;

/// A DIMM, and all that is needed to plug it in again at the same place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimm {
    /// Its device's id, where it was given one.
    pub id: Option<String>,
    /// Its memory backend: an object's id. Two DIMMs cannot share one, so it is the DIMM's name here.
    pub memdev: String,
    /// Where it lies in the guest.
    pub range: GpaRange,
    /// Its slot.
    pub slot: i64,
    /// Its NUMA node in the guest.
    pub node: i64,
}

impl Dimm {
    /// Arguments of the `device_add` that plugs it in where it was.
    pub(super) fn device_add(&self) -> Value {
        let mut arguments = json!({
            "driver": "pc-dimm",
            "memdev": self.memdev,
            "addr": self.range.start().0,
            "slot": self.slot,
            "node": self.node,
        });
        if let Some(id) = &self.id {
            arguments["id"] = json!(id);
        }
        arguments
    }
}

impl fmt::Display for Dimm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.id.as_ref().unwrap_or(&self.memdev);
        write!(f, "{name}, {} at {}", self.range.len(), self.range.start())
    }
}

/// The DIMMs in an answer to `query-memory-devices`, in address order. What else is plugged in, and
/// what cannot be unplugged, is left out.
///
/// # Errors
/// A text that names the field that makes no sense.
pub(super) fn parse(answer: &Value) -> Result<Vec<Dimm>, String> {
    let devices = answer.as_array().ok_or("the answer is no list")?;
    let mut dimms = Vec::new();
    for device in devices.iter().filter(|device| device["type"] == "dimm") {
        let data = device["data"].as_object().ok_or("data: a DIMM has none")?;
        dimms.extend(dimm(data)?);
        if dimms.len() > DIMMS_MAX {
            return Err(format!("there are more than {DIMMS_MAX} DIMMs"));
        }
    }
    dimms.sort_by_key(|dimm| dimm.range);
    check_apart(&dimms)?;
    Ok(dimms)
}

fn dimm(data: &Map<String, Value>) -> Result<Option<Dimm>, String> {
    let hotpluggable = field(data, "hotpluggable", Value::as_bool)?;
    let memdev = field(data, "memdev", Value::as_str)?;
    let Some(memdev) = memdev.strip_prefix(OBJECTS).filter(|_| hotpluggable) else {
        return Ok(None);
    };
    let id = data.get("id").map(|_| field(data, "id", Value::as_str)).transpose()?;
    let start = Gpa(field(data, "addr", Value::as_u64)?);
    let size = ByteSize::from_bytes(field(data, "size", Value::as_u64)?);
    Ok(Some(Dimm {
        id: id.map(|id| name("id", id)).transpose()?,
        memdev: name("memdev", memdev)?,
        range: GpaRange::new(start, size).map_err(|error| format!("addr, size: {error}"))?,
        slot: field(data, "slot", Value::as_i64)?,
        node: field(data, "node", Value::as_i64)?,
    }))
}

fn field<'a, T>(
    data: &'a Map<String, Value>,
    key: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<T, String> {
    let value = data.get(key).ok_or_else(|| format!("{key}: a DIMM has none"))?;
    read(value).ok_or_else(|| format!("{key}: it makes no sense in a DIMM"))
}

/// Names go into the log and into commands: only what QEMU allows in an id (`id_wellformed`).
fn name(key: &str, text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    if begins && text.len() <= NAME_MAX && text.chars().all(allowed) {
        return Ok(text.into());
    }
    Err(format!("{key}: no id of QEMU's, or longer than {NAME_MAX} bytes"))
}

fn check_apart(dimms: &[Dimm]) -> Result<(), String> {
    let overlap = |pair: &&[Dimm]| pair[0].range.intersection(pair[1].range).is_some();
    match dimms.windows(2).find(overlap) {
        Some(pair) => Err(format!("addr: {} and {} overlap", pair[0], pair[1])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 11.1 answers.
    fn qemu_says() -> Value {
        json!([{"type": "dimm", "data": {
            "memdev": "/objects/mem1", "hotplugged": true, "addr": 4_294_967_296_u64,
            "hotpluggable": true, "size": 536_870_912, "slot": 0, "node": 0, "id": "dimm",
        }}])
    }

    fn with(key: &str, value: Value) -> Value {
        let mut answer = qemu_says();
        answer[0]["data"][key] = value;
        answer
    }

    #[test]
    fn a_dimm_is_read_and_goes_back_to_its_place() {
        let dimms = parse(&qemu_says()).unwrap();
        assert_eq!(dimms[0].to_string(), "dimm, 512 MiB at 0x100000000");
        assert_eq!(
            dimms[0].device_add(),
            json!({"driver": "pc-dimm", "id": "dimm", "memdev": "mem1", "addr": 4_294_967_296_u64,
                   "slot": 0, "node": 0})
        );
        let kept = serde_json::to_string(&dimms[0]).unwrap();
        assert_eq!(serde_json::from_str::<Dimm>(&kept).unwrap(), dimms[0]);
    }

    #[test]
    fn a_dimm_without_an_id_is_named_after_its_backend() {
        let mut answer = qemu_says();
        answer[0]["data"].as_object_mut().unwrap().remove("id");
        let dimms = parse(&answer).unwrap();
        assert_eq!(dimms[0].to_string(), "mem1, 512 MiB at 0x100000000");
        assert_eq!(dimms[0].device_add().get("id"), None);
    }

    #[test]
    fn what_is_no_dimm_of_ours_is_left_out() {
        let mut other = qemu_says();
        other[0]["type"] = json!("virtio-mem");
        for answer in [
            json!([]),
            other,
            with("hotpluggable", json!(false)),
            with("memdev", json!("/machine/unattached/device[3]")),
        ] {
            assert_eq!(parse(&answer), Ok(Vec::new()), "{answer}");
        }
    }

    #[test]
    fn nonsense_is_told_by_its_field() {
        for (key, value) in [
            ("addr", json!(-1)),
            ("addr", json!(u64::MAX)),
            ("size", json!(0)),
            ("size", json!("512M")),
            ("slot", json!(1.5)),
            ("node", Value::Null),
            ("id", json!("a b\n")),
            ("memdev", json!("/objects/")),
            ("memdev", json!(format!("/objects/{}", "m".repeat(NAME_MAX + 1)))),
            ("hotpluggable", json!("yes")),
        ] {
            let error = parse(&with(key, value.clone())).unwrap_err();
            assert!(error.contains(key), "{key} = {value}: {error}");
        }
        assert!(parse(&json!({})).is_err() && parse(&json!([{"type": "dimm"}])).is_err());
    }

    #[test]
    fn more_than_there_can_be_and_two_at_one_place_are_refused() {
        let many = |count: u64, apart: u64| {
            let one = |n: u64| {
                let mut one = with("addr", json!(n * apart))[0].clone();
                one["data"]["memdev"] = json!(format!("/objects/m{n}"));
                one
            };
            Value::Array((0..count).map(one).collect())
        };
        let size = 536_870_912;
        assert_eq!(parse(&many(256, size)).map(|dimms| dimms.len()), Ok(256));
        assert!(parse(&many(257, size)).unwrap_err().contains("256"));
        assert!(parse(&many(2, size - 4096)).unwrap_err().contains("overlap"));
    }
}
