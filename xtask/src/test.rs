//! Runs every test of the project, one step after the other.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::root::{npm_tool, root};
use crate::run::{cargo, command, run, seconds, succeeds};
use crate::setup::WASM_TARGET;
use crate::{setup, web};

/// Which steps to run; all of them when none is named.
#[derive(clap::Args)]
pub struct Options {
    /// Only these steps, in the usual order.
    #[arg(value_enum)]
    only: Vec<Step>,
}

/// The steps, in the order in which they run: quick answers first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Unit, property, simulation and integration tests, natively.
    Rust,
    /// The browser node against the list of calls that block or panic in a browser.
    WasmLint,
    /// The browser node and the pages; the browser tests need them.
    Build,
    /// TypeScript's checker over the pages.
    Types,
    /// Unit tests of the pages' scripts and of the test tools, in Node.js.
    Pages,
    /// Headless Chromium against the built pages and programs.
    Browser,
}

impl Step {
    const ALL: [Self; 6] = [Self::Rust, Self::WasmLint, Self::Build, Self::Types, Self::Pages, Self::Browser];

    fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust tests",
            Self::WasmLint => "wasm lint",
            Self::Build => "wasm, pages and programs",
            Self::Types => "TypeScript types",
            Self::Pages => "page unit tests",
            Self::Browser => "browser tests",
        }
    }

    fn run(self) -> Result<Count> {
        match self {
            // One build for the whole workspace, so that each dependency is compiled once.
            Self::Rust => counted(
                &mut cargo(["test", "--workspace", "--exclude", "xtask-bindgen", "--no-fail-fast"]),
                "the Rust tests",
            ),
            Self::WasmLint => wasm_lint().map(|()| Count::one_passed()),
            Self::Build => {
                web::build(false)?;
                // All targets of the whole workspace, as the tests above: one choice of features, so nothing is compiled twice.
                run(&mut cargo(["build", "-q", "--workspace", "--all-targets", "--exclude", "xtask-bindgen"]))?;
                Ok(Count::default())
            }
            Self::Types => types().map(|()| Count::one_passed()),
            Self::Pages => node_tests(&root().join("web/test")),
            Self::Browser => node_tests(&root().join("tests/browser")),
        }
    }
}

/// Sets up and runs the chosen steps. Prints a table of times and, last, `N passed, N failed`.
///
/// # Errors
/// When a step failed; the steps after it are run all the same.
pub fn all(options: &Options) -> Result<()> {
    setup::all(true)?;
    let mut total = Count::default();
    let mut table: Vec<(&str, String, Duration)> = Vec::new();
    for step in Step::ALL.into_iter().filter(|step| options.only.is_empty() || options.only.contains(step)) {
        println!("\n==> {}", step.name());
        let start = Instant::now();
        let outcome = match step.run() {
            Ok(count) => {
                total.add(count);
                if count == Count::default() { "done".to_owned() } else { count.to_string() }
            }
            Err(error) => {
                let count = error.downcast_ref::<Failed>().map_or(Count::one_failed(), |failed| failed.count);
                total.add(count);
                println!("{error:#}");
                format!("FAILED: {count}")
            }
        };
        println!("<== {}: {outcome} in {}", step.name(), seconds(start.elapsed()));
        table.push((step.name(), outcome, start.elapsed()));
    }
    println!();
    for (name, outcome, time) in table {
        println!("{name:28} {:>12}  {outcome}", seconds(time));
    }
    if options.only.is_empty() && !has_peft() {
        println!("\nNot checked: LoRA files against peft, because no Python with it is here (docs/METHOD.md says how).");
    }
    if options.only.is_empty() && !crate::wasm::has_threads() {
        println!("\nNot checked: threads in the browser, because the source of Rust's standard library is not here (`rustup component add rust-src`).");
    }
    println!("\n{total}");
    if total.failed > 0 {
        bail!("{} of {} tests or steps failed", total.failed, total.failed + total.passed);
    }
    Ok(())
}

/// Whether the test of LoRA files can ask `peft`; twin of `means_the_same_in_peft` in cli/tests/methods.rs.
fn has_peft() -> bool {
    let python = std::env::var("BARYCENTER_PYTHON").unwrap_or_else(|_| "python3".into());
    succeeds(command(&python, ["-c", "import peft, torch, transformers, safetensors"]).stderr(Stdio::null()))
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    fn one_passed() -> Self {
        Self { passed: 1, failed: 0 }
    }

    fn one_failed() -> Self {
        Self { passed: 0, failed: 1 }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// What one line of a test runner's output adds: Rust's `test result: …`, or Node's `ℹ pass N` and `ℹ fail N`.
    fn of_line(line: &str) -> Self {
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        if let Some(rest) = line.trim().strip_prefix("test result: ") {
            let field = |word: &str| {
                rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(word)).map_or(0, number)
            };
            return Self { passed: field(" passed"), failed: field(" failed") };
        }
        let Some(rest) = line.strip_prefix("ℹ ") else { return Self::default() };
        match rest.split_once(' ') {
            Some(("pass", count)) => Self { passed: number(count), failed: 0 },
            Some(("fail" | "cancelled", count)) => Self { passed: 0, failed: number(count) },
            _ => Self::default(),
        }
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// A test runner that ended badly, with what it had counted.
#[derive(Debug, thiserror::Error)]
#[error("{what} failed")]
struct Failed {
    what: String,
    count: Count,
}

/// Runs a test runner, showing its output and counting its tests.
fn counted(command: &mut Command, what: &str) -> Result<Count> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("{what} could not be started"))?;
    let stdout = child.stdout.take().context("a piped process has standard output")?;
    let mut count = Count::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| format!("output of {what}"))?;
        count.add(Count::of_line(&line));
        println!("{line}");
    }
    let status = child.wait().with_context(|| format!("{what} did not end"))?;
    if status.success() && count.failed == 0 {
        return Ok(count);
    }
    // A runner that failed without counting a failure did not get as far as running it.
    count.failed = count.failed.max(1);
    Err(Failed { what: what.to_owned(), count }.into())
}

/// Clippy with the list of what compiles for wasm32 and fails there.
fn wasm_lint() -> Result<()> {
    run(cargo(["clippy", "-q", "-p", "barycenter-node-wasm", "--target", WASM_TARGET, "--"])
        .args(["-D", "clippy::disallowed_types", "-D", "clippy::disallowed_methods"])
        .env("CLIPPY_CONF_DIR", root().join("xtask/clippy-wasm")))
}

fn types() -> Result<()> {
    let config = root().join("web/tsconfig.json");
    run(command("node", [npm_tool("typescript", "bin/tsc")]).args(["--noEmit", "-p"]).arg(config))
}

/// The files of a folder with this ending, in alphabetical order.
fn files_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry.with_context(|| format!("{} cannot be read", folder.display()))?.path();
        if path.to_string_lossy().ends_with(ending) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A test that hangs ends after ten minutes: the slowest take two on two busy cores.
const TEST_TIMEOUT: &str = "--test-timeout=600000";

/// `node --test` over the test files of a folder, one file at a time: two cores carry one browser.
fn node_tests(folder: &Path) -> Result<Count> {
    let files = files_ending(folder, ".test.mjs")?;
    if files.is_empty() {
        bail!("{} holds no test", folder.display());
    }
    counted(
        command("node", ["--test", "--test-reporter=spec", "--test-concurrency=1", TEST_TIMEOUT]).args(files),
        "the tests in Node.js",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_both_runners_are_read() {
        let rust = "test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Count::of_line(rust), Count { passed: 7, failed: 2 });
        assert_eq!(Count::of_line("ℹ pass 12"), Count { passed: 12, failed: 0 });
        assert_eq!(Count::of_line("ℹ fail 3"), Count { passed: 0, failed: 3 });
        assert_eq!(Count::of_line("ℹ duration_ms 3"), Count::default());
    }
}
