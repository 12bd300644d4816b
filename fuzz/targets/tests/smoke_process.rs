//! The smoke run of the device process. One test, alone in its process: the targets count descriptors
//! and mappings, and nobody else may open or close any meanwhile.

mod common;

#[test]
fn session_and_control() {
    common::smoke("session");
    common::smoke("control");
}
