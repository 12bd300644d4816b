//! Links the guest as what QEMU's `-kernel` boots: a static ELF file at fixed addresses.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/link.ld");
    println!("cargo::rerun-if-changed={script}");
    let script = format!("-Wl,--script={script}");
    for argument in ["-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none", &script] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
