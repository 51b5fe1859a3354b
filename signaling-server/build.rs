//! Embeds the pages anew when they were built anew; debug builds read them from disk.

use std::path::Path;

fn main() {
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let pages = if release && Path::new("../web/dist").is_dir() { "../web/dist" } else { "build.rs" };
    println!("cargo:rerun-if-changed={pages}");
    if release {
        // Sees the folder of pages come into being.
        println!("cargo:rerun-if-changed=../web");
    }
}
