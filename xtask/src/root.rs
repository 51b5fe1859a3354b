//! Where things lie.

use std::path::PathBuf;

/// The repository's root folder.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Where the built pages, scripts and the browser node go.
pub fn dist() -> PathBuf {
    root().join("web/dist")
}

/// A program that an npm package brought, as arguments for `node`.
pub fn npm_tool(package: &str, path: &str) -> PathBuf {
    root().join("node_modules").join(package).join(path)
}
