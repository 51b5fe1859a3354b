//! The barycenter program: serve, node, train, generate, verify.
fn main() {}
