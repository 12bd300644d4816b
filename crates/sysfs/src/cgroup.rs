//! Control groups whose memory somebody has asked the kernel to keep
//! (Documentation/admin-guide/cgroup-v2.rst, `memory.min` and `memory.low`).

use std::collections::VecDeque;

use crate::Root;

const MOUNT: &str = "sys/fs/cgroup";
/// Every group of cgroup v2 has this file, and no hierarchy of v1 does.
const ONLY_IN_V2: &str = "cgroup.controllers";
/// Most groups that are looked at: a machine with many containers has some hundred.
const LOOKED_AT_MOST: usize = 4096;
/// Most that are named: each is compared with each page that is about to go.
const NAMED_MOST: usize = 128;

/// Protected groups and all below them, as paths from the root of the hierarchy. Groups past the
/// first 4096, and protected ones past the first 128, are not named; nor is any where there is no
/// cgroup v2. Costs a few system calls for each group there is.
pub fn protected(root: &Root) -> Vec<String> {
    let mut found = Vec::new();
    if !root.exists(format!("{MOUNT}/{ONLY_IN_V2}")) {
        return found;
    }
    let mut queue = VecDeque::from([(String::new(), Inherited::Nothing)]);
    let mut seen = 0;
    while let Some((path, inherited)) = queue.pop_front() {
        seen += 1;
        let own = if inherited == Inherited::Protection || is_protected(root, &path) {
            Inherited::Protection
        } else {
            Inherited::Nothing
        };
        // Each directory is a group; the other fifty entries of each are the kernel's files.
        let below = root.directories(format!("{MOUNT}{path}")).unwrap_or_default();
        queue.extend(below.into_iter().map(|name| (format!("{path}/{name}"), own)));
        if own == Inherited::Protection {
            found.push(path);
        }
        if seen == LOOKED_AT_MOST || found.len() == NAMED_MOST {
            break;
        }
    }
    found.sort_unstable();
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inherited {
    Nothing,
    Protection,
}

/// The root has neither file.
fn is_protected(root: &Root, path: &str) -> bool {
    let keeps = |file: &str| {
        let value = root.read(format!("{MOUNT}{path}/{file}"));
        value.is_ok_and(|value| value.trim() != "0")
    };
    keeps("memory.min") || keeps("memory.low")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    fn group(fake: &FakeRoot, path: &str, min: &str, low: &str) {
        fake.put(&format!("{MOUNT}{path}/memory.min"), min);
        fake.put(&format!("{MOUNT}{path}/memory.low"), low);
    }

    #[test]
    fn protected_groups_are_named_with_all_below_them() {
        let fake = FakeRoot::new();
        assert!(protected(&fake.root()).is_empty());
        group(&fake, "/system.slice", "0\n", "0\n");
        group(&fake, "/system.slice/db.service", "0\n", "1048576\n");
        group(&fake, "/system.slice/db.service/worker", "0\n", "0\n");
        group(&fake, "/vip.slice", "max\n", "0\n");
        fake.put(&format!("{MOUNT}/vip.slice/memory.stat"), "anon 0\n");
        assert!(protected(&fake.root()).is_empty(), "no cgroup v2");
        fake.put(&format!("{MOUNT}/{ONLY_IN_V2}"), "cpu memory\n");
        let named = ["/system.slice/db.service", "/system.slice/db.service/worker", "/vip.slice"];
        assert_eq!(protected(&fake.root()), named);
    }

    #[test]
    fn there_is_a_limit() {
        let fake = FakeRoot::new();
        fake.put(&format!("{MOUNT}/{ONLY_IN_V2}"), "cpu memory\n");
        (0..200).for_each(|n| group(&fake, &format!("/{n}"), "1\n", "0\n"));
        assert_eq!(protected(&fake.root()).len(), NAMED_MOST);
    }
}
