//! What each guest plays.

use memtide_units::ByteSize;

/// A script of the workload's: sizes are shares of the guest's memory, times are fixed. In a cycle, as
/// in a build, files are read that then lie in the page cache (the first time they are made), a process
/// grows in two steps and checks all that it has, and ends; then nothing happens for a while, at the end
/// for longer. All but the rests is fixed work.
pub(super) fn of(memory: ByteSize, cycles: u32) -> String {
    let share = |sixteenths: u64| memory.mib() * sixteenths / 16;
    let (first, more, files) = (share(2), share(3), share(2));
    format!(
        "idle 20s; repeat {cycles} {{ read src {files}MiB; alloc cc {first}MiB; verify cc; \
         grow cc {more}MiB; verify cc; hot cc {first}MiB 5s; free cc; idle 30s }} idle 180s"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_uses_less_than_half_of_the_guest() {
        let script = of(ByteSize::from_gib(2), 2);
        assert!(
            script.contains(
                "repeat 2 { read src 256MiB; alloc cc 256MiB; verify cc; grow cc 384MiB;"
            )
        );
        assert!(script.ends_with("free cc; idle 30s } idle 180s"));
    }
}
