//! Installs what is missing on a machine that has Rust and Node.js.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::root::root;
use crate::run::{command, output, run, step, succeeds};

/// The target that browser nodes are compiled for.
pub const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// Debian's packages for a browser, the Vulkan loader, a software Vulkan driver, and letters to draw with.
const DEBIAN_PACKAGES: [&str; 4] = ["chromium", "libvulkan1", "mesa-vulkan-drivers", "fonts-dejavu-core"];

/// Sets up for building, and for browser tests as well when `browser` is true. Quick when nothing is missing.
pub fn all(browser: bool) -> Result<()> {
    wasm_target()?;
    rust_source()?;
    npm_packages()?;
    if browser { browser_and_vulkan() } else { Ok(()) }
}

fn wasm_target() -> Result<()> {
    let folder = output(&mut command("rustc", ["--print", "target-libdir", "--target", WASM_TARGET]))?;
    if Path::new(&folder).is_dir() {
        return Ok(());
    }
    step("Rust target wasm32-unknown-unknown", || {
        run(&mut command("rustup", ["target", "add", WASM_TARGET])).with_context(|| {
            format!("the Rust target {WASM_TARGET} is missing: install it with rustup, or with the package manager that Rust came from")
        })
    })
}

/// The source of Rust's standard library, which the browser node with threads is compiled from: whether it is there.
pub fn rust_source() -> Result<bool> {
    let folder = output(&mut command("rustc", ["--print", "sysroot"]))?;
    let is_there = || Path::new(&folder).join("lib/rustlib/src/rust/library/Cargo.lock").is_file();
    if is_there() {
        return Ok(true);
    }
    // A compiler that did not come from rustup has its source elsewhere: from its own package manager, if at all.
    let added = step("Rust's standard library as source", || Ok(run(&mut command("rustup", ["component", "add", "rust-src"]))))?;
    if added.is_ok() && is_there() {
        return Ok(true);
    }
    println!(
        "The source of Rust's standard library cannot be had, so browsers will compute with one thread: install it with \
         `rustup component add rust-src`, or with the package manager that Rust came from, and build again."
    );
    Ok(false)
}

/// `npm ci`, unless the installed packages are those of this lock file.
fn npm_packages() -> Result<()> {
    let lock = fs::read_to_string(root().join("package-lock.json")).context("package-lock.json cannot be read")?;
    let stamp = root().join("node_modules/.installed-lock.json");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    node_version()?;
    step("npm packages", || {
        run(&mut command("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
        fs::write(&stamp, &lock).with_context(|| format!("{} cannot be written", stamp.display()))
    })
}

/// The oldest Node.js that has a stable test runner and `fetch`.
const OLDEST_NODE: u32 = 20;

fn node_version() -> Result<()> {
    let version = output(&mut command("node", ["--version"])).context("Node.js is missing: install version 20 or later")?;
    let major: u32 = version.trim_start_matches('v').split('.').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    if major < OLDEST_NODE {
        bail!("Node.js {version} is too old: install version {OLDEST_NODE} or later");
    }
    Ok(())
}

fn browser_and_vulkan() -> Result<()> {
    let (browser, vulkan) = (chromium().is_some(), has_vulkan());
    if browser && vulkan {
        return Ok(());
    }
    if is_debian() && is_root() {
        return step("Chromium and lavapipe from Debian", || {
            run(&mut command("apt-get", ["update", "-q"]))?;
            run(command("apt-get", ["install", "-q", "-y", "--no-install-recommends"])
                .args(DEBIAN_PACKAGES)
                .env("DEBIAN_FRONTEND", "noninteractive"))
        });
    }
    let packages = DEBIAN_PACKAGES.join(" ");
    if !browser {
        bail!(
            "no Chromium was found: install it (on Debian: `sudo apt-get install {packages}`), or name one in CHROMIUM_PATH"
        );
    }
    println!("No Vulkan driver was found, so tests of the GPU kernels will fail: on Debian `sudo apt-get install {packages}`.");
    Ok(())
}

/// The browser for tests and the demo: `CHROMIUM_PATH`, or the first of the usual places.
pub fn chromium() -> Option<String> {
    const PLACES: [&str; 5] = [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ];
    if let Ok(path) = std::env::var("CHROMIUM_PATH") {
        return Some(path);
    }
    PLACES.iter().find(|path| Path::new(path).exists()).map(|path| (*path).to_owned())
}

/// macOS and Windows bring their own graphics interfaces; on Linux a driver's description must be there.
fn has_vulkan() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let drivers = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let driver = drivers.iter().any(|folder| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()));
    driver && succeeds(command("sh", ["-c", "ldconfig -p | grep -q libvulkan.so.1"]).env("PATH", path_with_sbin()))
}

fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists()
}

fn is_root() -> bool {
    output(&mut command("id", ["-u"])).is_ok_and(|id| id == "0")
}
