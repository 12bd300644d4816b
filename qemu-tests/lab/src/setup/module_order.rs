//! In which order modules must be loaded, out of depmod's `modules.dep`.

/// The module called `name` and everything it needs, as paths in loading order; nothing if
/// `modules.dep` does not know it (built in, or not there at all).
///
/// Each line of `modules.dep` is `PATH: NEEDED NEEDED ...`, where the needed ones are complete and
/// stand in the reverse of the order in which they must be loaded.
pub(crate) fn load_order(modules_dep: &str, name: &str) -> Option<Vec<String>> {
    let lines = modules_dep.lines().filter_map(|line| line.split_once(':'));
    let (path, needed) = lines.into_iter().find(|line| module_name(line.0) == name)?;
    let reversed = needed.split_whitespace().rev();
    Some(reversed.chain([path]).map(str::to_owned).collect())
}

/// `kernel/drivers/block/virtio_blk.ko.xz` is `virtio_blk`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/virtio_blk_extra.ko.xz:\n\
                       kernel/a/virtio_blk.ko.xz: kernel/b/top.ko.xz kernel/c/base.ko\n\
                       kernel/b/top.ko.xz: kernel/c/base.ko\nkernel/c/base.ko:\n";

    #[test]
    fn what_is_needed_comes_first() {
        let order = load_order(DEP, "virtio_blk").unwrap();
        assert_eq!(order, ["kernel/c/base.ko", "kernel/b/top.ko.xz", "kernel/a/virtio_blk.ko.xz"]);
        assert_eq!(load_order(DEP, "base").unwrap(), ["kernel/c/base.ko"]);
        assert_eq!(load_order(DEP, "absent"), None);
    }
}
