//! Holds the direction of dependencies between the parts, as `docs/ARCHITECTURE.md` draws it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The packages, each with what it names as a dependency outside of tests, on any target.
struct Graph {
    direct: BTreeMap<String, BTreeSet<String>>,
    members: BTreeMap<String, PathBuf>,
}

#[test]
fn protocol_core_and_simulator_know_no_runtime_graphics_or_browser() {
    let graph = &*GRAPH;
    for package in ["barycenter-protocol", "barycenter-core", "barycenter-simulator"] {
        for banned in ["tokio", "wgpu", "web-sys", "webrtc", "axum", "reqwest"] {
            graph.assert_never_reaches(package, banned);
        }
        // Not among what others bring: a browser's source of random numbers, which the browser node switches on for all.
        for banned in ["js-sys", "wasm-bindgen"] {
            assert!(!graph.direct[package].contains(banned), "{package} depends on {banned}");
        }
    }
}

#[test]
fn protocol_core_and_simulator_read_no_clock_and_start_no_thread() {
    let graph = &*GRAPH;
    for package in ["barycenter-protocol", "barycenter-core", "barycenter-simulator"] {
        for (file, text) in sources(&graph.members[package].join("src")) {
            for banned in ["std::thread", "Instant::now", "SystemTime", "std::fs", "std::net", "thread_rng"] {
                assert!(!text.contains(banned), "{} uses {banned}: pass it in as a parameter", file.display());
            }
        }
    }
}

#[test]
fn only_the_engine_names_wgpu() {
    GRAPH.assert_named_only_by("wgpu", &["barycenter-engine"]);
}

#[test]
fn only_transport_names_webrtc() {
    GRAPH.assert_named_only_by("webrtc", &["barycenter-transport"]);
}

#[test]
fn only_transport_and_the_browser_node_name_web_sys() {
    GRAPH.assert_named_only_by("web-sys", &["barycenter-transport", "barycenter-node-wasm"]);
}

#[test]
fn only_the_browser_node_exports_to_javascript() {
    let graph = &*GRAPH;
    for (package, folder) in graph.members.iter().filter(|(name, _)| *name != "barycenter-node-wasm") {
        for (file, text) in sources(&folder.join("src")) {
            let mut lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with("#[wasm_bindgen"));
            while let Some(attribute) = lines.next() {
                if !attribute.starts_with("#[wasm_bindgen") {
                    continue;
                }
                let item = lines.by_ref().find(|line| !line.starts_with("#[") && !line.starts_with("//")).unwrap_or_default();
                // Imports are `extern "C" {` blocks and, in them, declarations that end with a semicolon.
                let import = item.contains("extern \"C\"") || item.ends_with(';') || item.ends_with('(');
                assert!(import, "{package} exports `{item}` to JavaScript in {}: that is node-wasm's part", file.display());
            }
        }
    }
}

#[test]
fn the_server_builds_without_engine_and_graphics() {
    let graph = &*GRAPH;
    for banned in ["barycenter-engine", "barycenter-shaders", "barycenter-transport", "barycenter-node", "wgpu", "gemm"] {
        graph.assert_never_reaches("barycenter-server", banned);
    }
}

#[test]
fn parts_depend_in_the_drawn_direction_only() {
    // Each part with the parts that it may name.
    let allowed: [(&str, &[&str]); 13] = [
        ("barycenter-shaders", &[]),
        ("barycenter-protocol", &[]),
        ("barycenter-model", &[]),
        ("barycenter-core", &["barycenter-protocol"]),
        ("barycenter-simulator", &["barycenter-protocol", "barycenter-core"]),
        ("barycenter-transport", &["barycenter-protocol"]),
        ("barycenter-engine", &["barycenter-shaders", "barycenter-model"]),
        (
            "barycenter-node",
            &["barycenter-protocol", "barycenter-core", "barycenter-model", "barycenter-engine", "barycenter-transport"],
        ),
        (
            "barycenter-node-wasm",
            &["barycenter-protocol", "barycenter-core", "barycenter-engine", "barycenter-transport", "barycenter-node"],
        ),
        (
            "barycenter-node-native",
            &["barycenter-protocol", "barycenter-core", "barycenter-engine", "barycenter-transport", "barycenter-node"],
        ),
        ("barycenter-server", &["barycenter-protocol", "barycenter-core", "barycenter-model"]),
        (
            "barycenter",
            &[
                "barycenter-protocol",
                "barycenter-core",
                "barycenter-simulator",
                "barycenter-model",
                "barycenter-engine",
                "barycenter-transport",
                "barycenter-node",
                "barycenter-node-native",
                "barycenter-server",
            ],
        ),
        ("barycenter-demo", &["barycenter-core", "barycenter-model", "barycenter-engine"]),
    ];
    let graph = &*GRAPH;
    for (package, may_name) in allowed {
        for dependency in graph.direct[package].iter().filter(|name| graph.members.contains_key(*name)) {
            assert!(may_name.contains(&dependency.as_str()), "{package} depends on {dependency}, which is not its direction");
        }
    }
    let listed: BTreeSet<&str> = allowed.iter().map(|(package, _)| *package).collect();
    for package in graph.members.keys().filter(|name| !name.starts_with("xtask")) {
        assert!(listed.contains(package.as_str()), "{package} is new: say here what it may depend on");
    }
}

static GRAPH: LazyLock<Graph> = LazyLock::new(Graph::read);

impl Graph {
    /// Of this machine's target and of the browser's: of other platforms' packages nothing needs to be at hand.
    fn read() -> Self {
        let version = output("rustc", &["-vV"]);
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its target");
        let mut graph = Self { direct: BTreeMap::new(), members: BTreeMap::new() };
        for target in [host, "wasm32-unknown-unknown"] {
            graph.add(target);
        }
        graph
    }

    fn add(&mut self, target: &str) {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let json = output(&cargo, &["metadata", "--format-version", "1", "--locked", "--filter-platform", target]);
        let metadata: Value = serde_json::from_str(&json).expect("cargo metadata prints JSON");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let member_ids: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
        let mut names = BTreeMap::new();
        for package in list(&metadata["packages"]) {
            let (id, name) = (text(&package["id"]), text(&package["name"]));
            if member_ids.contains(&id) {
                let manifest = PathBuf::from(text(&package["manifest_path"]));
                self.members.insert(name.clone(), manifest.parent().map(Path::to_path_buf).unwrap_or_default());
            }
            names.insert(id, name);
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let known = self.direct.entry(names[&text(&node["id"])].clone()).or_default();
            for dependency in list(&node["deps"]) {
                // A kind of null is a normal dependency; the others are for tests and build scripts.
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    known.insert(names[&text(&dependency["pkg"])].clone());
                }
            }
        }
    }

    /// Fails, with the path that leads there, when `banned` is among the dependencies of `package` or of those.
    fn assert_never_reaches(&self, package: &str, banned: &str) {
        let mut paths = vec![vec![package.to_owned()]];
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop() {
            let last = path.last().cloned().unwrap_or_default();
            assert_ne!(last, banned, "{package} must not know {banned}: {}", path.join(" → "));
            for next in self.direct.get(&last).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    paths.push(path.iter().chain([next]).cloned().collect());
                }
            }
        }
    }

    fn assert_named_only_by(&self, dependency: &str, packages: &[&str]) {
        let namers: Vec<&String> = self.members.keys().filter(|member| self.direct[*member].contains(dependency)).collect();
        for namer in &namers {
            assert!(packages.contains(&namer.as_str()), "{namer} depends on {dependency}: that belongs in {packages:?}");
        }
        assert!(!namers.is_empty(), "nobody depends on {dependency} any more: this rule has lost its subject");
    }
}

/// What a program prints, run in this package's folder.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

/// The Rust files below a folder, with their text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a member has a folder of sources") {
        let path = entry.expect("a folder can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push((path.clone(), fs::read_to_string(&path).expect("a source file is text")));
        }
    }
    found
}
