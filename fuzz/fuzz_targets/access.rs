#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| memtide_fuzz_targets::access::run(data));
