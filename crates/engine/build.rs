//! Names the platforms where operations are spread over threads: everywhere but in a browser module without shared memory.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(threads)");
    let is = |variable: &str, word: &str| std::env::var(variable).is_ok_and(|text| text.split(',').any(|part| part == word));
    if !is("CARGO_CFG_TARGET_ARCH", "wasm32") || is("CARGO_CFG_TARGET_FEATURE", "atomics") {
        println!("cargo::rustc-cfg=threads");
    }
}
