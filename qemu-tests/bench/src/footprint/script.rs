//! What each guest plays.

use memtide_units::ByteSize;

/// A script of the workload's: sizes are shares of the guest's memory, times are fixed. In a cycle
/// a process grows in two steps and checks all that it has (fixed work), reads files that then lie
/// in the page cache, ends, and nothing happens for a while; at the end for longer.
pub(super) fn of(memory: ByteSize, cycles: u32) -> String {
    let share = |sixteenths: u64| memory.mib() * sixteenths / 16;
    let (first, more, files) = (share(2), share(3), share(2));
    format!(
        "repeat {cycles} {{ alloc cc {first}MiB; verify cc; grow cc {more}MiB; verify cc; \
         hot cc {first}MiB 5s; files {files}MiB 5s; free cc; idle 20s }} idle 40s"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_uses_less_than_half_of_the_guest() {
        let script = of(ByteSize::from_gib(2), 2);
        assert!(script.starts_with("repeat 2 { alloc cc 256MiB; verify cc; grow cc 384MiB;"));
        assert!(script.contains("files 256MiB 5s; free cc; idle 20s } idle 40s"));
    }
}
