//! Is the processor emulated by QEMU's TCG?

/// What QEMU answers under TCG to the hypervisor leaf (`CPUID 0x4000_0000`), also with
/// `hypervisor=off` (target/i386/cpu.c, `cpu_x86_cpuid`; unset only by `tcg-cpuid=off`).
const SIGNATURE: &[u8; 12] = b"TCGTCGTCGTCG";

/// True where this program runs under TCG. False where that cannot be known.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_emulated() -> bool {
    // A safe function in newer compilers, an unsafe one in the oldest that the workspace allows.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has CPUID and allows it in user space, unless CPUID faulting
    // was turned on for this process, which only the process itself can do.
    let leaf = unsafe { std::arch::x86_64::__cpuid(0x4000_0000) };
    is_tcg([leaf.ebx, leaf.ecx, leaf.edx])
}

/// True where this program runs under TCG. False where that cannot be known, as here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn is_emulated() -> bool {
    false
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
fn is_tcg(registers: [u32; 3]) -> bool {
    registers.map(u32::to_le_bytes).as_flattened() == SIGNATURE
}

#[cfg(test)]
mod tests {
    use super::is_tcg;

    #[test]
    fn knows_tcg_from_kvm_and_from_no_hypervisor() {
        assert!(is_tcg([0x5447_4354, 0x4354_4743, 0x4743_5447]));
        assert!(!is_tcg([0x4B4D_564B, 0x564B_4D56, 0x4D]));
        assert!(!is_tcg([0, 0, 0]));
    }
}
