//! Builds the browser node: cargo, wasm-bindgen, wasm-opt, and a limit on its size.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::root::{dist, npm_tool, target};
use crate::run::{cargo, command, output, run, step};
use crate::setup::WASM_TARGET;

/// Goal of the project: a phone fetches the node within a few seconds.
const LARGEST_GZIP_BYTES: u64 = 1024 * 1024 * 3 / 2;

/// Everything that the compiler may use for the features switched on in `.cargo/config.toml` and by default.
const WASM_FEATURES: [&str; 9] = [
    "--enable-simd",
    "--enable-bulk-memory",
    "--enable-bulk-memory-opt",
    "--enable-call-indirect-overlong",
    "--enable-sign-ext",
    "--enable-mutable-globals",
    "--enable-nontrapping-float-to-int",
    "--enable-reference-types",
    "--enable-multivalue",
];

/// Builds into `web/dist/assets/{node.js,node_bg.wasm}`; `quick` leaves wasm-opt out.
///
/// # Errors
/// When a tool fails, or when the optimised module is larger than the limit.
pub fn build(quick: bool) -> Result<()> {
    step("browser node", || {
        run(&mut cargo(["build", "-q", "-p", "barycenter-node-wasm", "--target", WASM_TARGET, "--profile", "wasm"]))?;
        let compiled = target().join(WASM_TARGET).join("wasm/barycenter_node_wasm.wasm");
        let assets = dist().join("assets");
        let bound = assets.join("node_bg.wasm");
        // Remembers how the module in place was made.
        let stamp = target().join("wasm-in-place");
        let how = if quick { "quick" } else { "optimised" };
        let fresh = is_newer(&bound, &compiled) && fs::read_to_string(&stamp).is_ok_and(|text| text == how);
        if !fresh {
            bind(&compiled, &assets)?;
            if !quick {
                optimise(&bound)?;
            }
            fs::write(&stamp, how).context("the note beside the module cannot be written")?;
        }
        check_size(&bound, !quick)
    })
}

fn bind(compiled: &Path, assets: &Path) -> Result<()> {
    fs::create_dir_all(assets).with_context(|| format!("{} cannot be made", assets.display()))?;
    run(cargo(["run", "-q", "-p", "xtask-bindgen", "--"]).args([compiled, assets]))
}

fn optimise(module: &Path) -> Result<()> {
    let smaller: PathBuf = module.with_extension("opt.wasm");
    run(command("node", [npm_tool("binaryen", "bin/wasm-opt")])
        .args(["-O3", "--strip-debug"])
        .args(WASM_FEATURES)
        .arg("-o")
        .args([&smaller, &module.to_path_buf()]))?;
    fs::rename(&smaller, module).with_context(|| format!("{} cannot be replaced", module.display()))
}

fn check_size(module: &Path, binding: bool) -> Result<()> {
    const SIZES: &str = "const z=require('zlib'),b=require('fs').readFileSync(process.argv[1]);\
         console.log(b.length, z.gzipSync(b,{level:9}).length, z.brotliCompressSync(b).length)";
    let text = output(command("node", ["-e", SIZES]).arg(module))?;
    let sizes: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [raw, gzip, brotli] = sizes[..] else { bail!("sizes of {} came as {text:?}", module.display()) };
    println!("{}: {} raw, {} gzip, {} brotli", module.display(), kib(raw), kib(gzip), kib(brotli));
    if binding && gzip > LARGEST_GZIP_BYTES {
        bail!("the browser node is {} compressed, and may be {} at most", kib(gzip), kib(LARGEST_GZIP_BYTES));
    }
    Ok(())
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}

fn is_newer(made: &Path, from: &Path) -> bool {
    let time = |path: &Path| -> Option<SystemTime> { fs::metadata(path).and_then(|data| data.modified()).ok() };
    matches!((time(made), time(from)), (Some(made), Some(from)) if made >= from)
}
