//! Set-up, wasm build, web build, demo data and the test runner.
fn main() {}
