//! Builds the browser node: cargo, wasm-bindgen, wasm-opt, and a limit on its size.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::root::{dist, npm_tool, target};
use crate::run::{cargo, command, output, run, step};
use crate::setup::{self, WASM_TARGET};

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

/// Flags of the module with threads: those of `.cargo/config.toml`, atomic operations, and a memory that the page makes and all
/// workers import. It may be as large as addresses reach; the page asks for less. The exports are how a thread gets its variables.
const THREADS_FLAGS: [&str; 9] = [
    "-Ctarget-feature=+simd128,+atomics,+bulk-memory,+mutable-globals",
    "-Clink-arg=--shared-memory",
    "-Clink-arg=--import-memory",
    "-Clink-arg=--max-memory=4294967296",
    "-Clink-arg=--export=__wasm_init_tls",
    "-Clink-arg=--export=__tls_size",
    "-Clink-arg=--export=__tls_align",
    "-Clink-arg=--export=__tls_base",
    // The compiler would say at every crate that `atomics` may change.
    "-Awarnings",
];

/// How the modules are built.
#[derive(Clone, Copy)]
pub struct How {
    /// Without wasm-opt.
    pub quick: bool,
    /// With whole training steps, for `bench/train_step.mjs`.
    pub bench: bool,
}

/// The two modules that a page chooses from.
#[derive(Clone, Copy, PartialEq)]
enum Module {
    /// One thread, any back end, any browser.
    Single,
    /// Several threads on one shared memory, where the page is cross-origin isolated. The standard library that comes with
    /// Rust has no atomic operations, so this one compiles its own.
    Threads,
}

impl Module {
    /// What its files are called in `web/dist/assets`: `NAME.js` and `NAME_bg.wasm`.
    fn name(self) -> &'static str {
        match self {
            Self::Single => "node",
            Self::Threads => "node_threads",
        }
    }

    /// A folder of its own, because its flags would have everything in the other one compiled again.
    fn target(self) -> PathBuf {
        match self {
            Self::Single => target(),
            Self::Threads => target().join("wasm-threads"),
        }
    }

    fn compile(self, bench: bool) -> Result<PathBuf> {
        let mut build = cargo(["build", "-q", "-p", "barycenter-node-wasm", "--target", WASM_TARGET, "--profile", "wasm"]);
        if bench {
            build.args(["--features", "bench"]);
        }
        if self == Self::Threads {
            build
                .args(["-Z", "build-std=std,panic_abort"])
                // The stable compiler takes the flags of nightly ones when asked this way.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_ENCODED_RUSTFLAGS", THREADS_FLAGS.join("\x1f"))
                .env("CARGO_TARGET_DIR", self.target());
        }
        run(&mut build)?;
        Ok(self.target().join(WASM_TARGET).join("wasm/barycenter_node_wasm.wasm"))
    }

    fn bound(self) -> PathBuf {
        dist().join("assets").join(format!("{}_bg.wasm", self.name()))
    }
}

/// Builds both modules into `web/dist/assets`. Where the standard library's source cannot be had,
/// the one with threads is left out, which is said, and pages compute with one thread.
///
/// # Errors
/// When a tool fails, or when an optimised module is larger than the limit.
pub fn build(how: How) -> Result<()> {
    step("browser node", || build_module(Module::Single, how))?;
    if setup::rust_source()? {
        return step("browser node with threads", || build_module(Module::Threads, how));
    }
    // A module of an older build would not fit the pages.
    for file in [Module::Threads.bound(), Module::Threads.bound().with_file_name("node_threads.js")] {
        if file.exists() {
            fs::remove_file(&file).with_context(|| format!("{} cannot be removed", file.display()))?;
        }
    }
    Ok(())
}

/// Whether the module with threads was built.
pub fn has_threads() -> bool {
    Module::Threads.bound().is_file()
}

fn build_module(module: Module, how: How) -> Result<()> {
    let compiled = module.compile(how.bench)?;
    let bound = module.bound();
    // Remembers how the module in place was made.
    let stamp = module.target().join("wasm-in-place");
    let made = format!("{}{}", if how.quick { "quick" } else { "optimised" }, if how.bench { ", bench" } else { "" });
    let fresh = is_newer(&bound, &compiled) && fs::read_to_string(&stamp).is_ok_and(|text| text == made);
    if !fresh {
        bind(&compiled, &dist().join("assets"), module.name())?;
        if !how.quick {
            optimise(&bound, module)?;
        }
        fs::write(&stamp, made).context("the note beside the module cannot be written")?;
    }
    check_size(&bound, !how.quick)
}

fn bind(compiled: &Path, assets: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(assets).with_context(|| format!("{} cannot be made", assets.display()))?;
    run(cargo(["run", "-q", "-p", "xtask-bindgen", "--"]).args([compiled, assets]).arg(name))
}

fn optimise(module: &Path, kind: Module) -> Result<()> {
    let smaller: PathBuf = module.with_extension("opt.wasm");
    let threads = if kind == Module::Threads { &["--enable-threads"][..] } else { &[] };
    run(command("node", [npm_tool("binaryen", "bin/wasm-opt")])
        .args(["-O3", "--strip-debug"])
        .args(WASM_FEATURES)
        .args(threads)
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
