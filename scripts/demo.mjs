// `npm run demo`: a household on one computer, for real. Starts the server, a native node and two Chromium pages that
// join through the invitation's URL, fine-tunes the demo model on one particular home, and reports what happened.
//
// usage: npm run demo -- [--json FILE] [--pages 2] [--native 1] [--screenshots DIR] [--epochs N]
//        [--gradients f16|f32] [--relay]   (--relay: all links through the server, as where devices do not reach each other)

import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({
  options: {
    json: { type: "string" },
    pages: { type: "string", default: "2" },
    native: { type: "string", default: "1" },
    epochs: { type: "string" },
    gradients: { type: "string" },
    relay: { type: "boolean", default: false },
    screenshots: { type: "string" },
    profile: { type: "string", default: "release" },
    "no-build": { type: "boolean", default: false },
    verbose: { type: "boolean", default: false },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const pages = Number(options.pages);
const natives = Number(options.native);
const nodesWanted = pages + natives;

if (!options["no-build"]) build();
// Only now: the packages it needs are installed by the set-up.
const { Swarm } = await import("./swarm.mjs");
const swarm = new Swarm({ profile: options.profile, quiet: !options.verbose });
let failed = false;
try {
  await demo();
} catch (error) {
  failed = true;
  console.error(`\nThe demo did not finish: ${error.message}`);
  for (const line of swarm.pageErrors.slice(-10)) console.error(`  page: ${line}`);
} finally {
  await swarm.stop();
}
process.exit(failed ? 1 : 0);

function build() {
  step("setting up and building (the first time takes several minutes)");
  run("cargo", ["xtask", "setup"]);
  run("cargo", ["xtask", "web"]);
  run("cargo", ["build", "--release", "-p", "barycenter"]);
}

async function demo() {
  const startedAt = Date.now();
  step("starting the home server");
  await swarm.startServer();
  console.log(`  ${swarm.inviteUrl}`);
  step(`joining ${natives} native node${natives === 1 ? "" : "s"} and ${pages} Chromium page${pages === 1 ? "" : "s"}`);
  for (let i = 0; i < natives; i++) swarm.startNativeNode(`Desktop${natives > 1 ? ` ${i + 1}` : ""}`, options.relay ? ["--relay"] : []);
  const names = ["Mia's phone", "Kitchen tablet", "Old laptop", "Spare phone"];
  const tabs = [];
  for (let i = 0; i < pages; i++) tabs.push(await swarm.openPage(names[i % names.length], { relay: options.relay }));
  const joined = await swarm.waitForNodes(nodesWanted, 60_000);
  for (const node of joined.nodes) console.log(`  ${node.name}: ${node.kind}, ${node.backend.kind} (${node.backend.description}), ${node.gflops.toFixed(1)} GFLOP/s`);
  const dashboard = options.screenshots ? await swarm.openPage("dashboard", { page: "dashboard", viewport: { width: 1280, height: 900 } }) : null;

  step("starting the run");
  const request = { model: "demo", dataset: "demo-home", min_stages: Math.min(2, nodesWanted), use_all_nodes: true };
  if (options.gradients) request.gradients = options.gradients;
  if (options.epochs) request.epochs = Number(options.epochs);
  const started = await swarm.call("POST", "/api/runs", request);
  let printedPlan = false;
  let printedEpochs = 0;
  let shots = 0;
  let plan = null;
  let peaks = new Map();
  const end = await swarm.snapshots((snapshot) => {
    const run = snapshot.run;
    if (!run || run.info.run !== started.run) return undefined;
    for (const node of snapshot.nodes) peaks.set(node.node, node);
    if (run.plan && !printedPlan) {
      printedPlan = true;
      plan = run.plan;
      printPlan(run.plan, snapshot.nodes);
    }
    for (const epoch of run.epochs.slice(printedEpochs)) printEpoch(epoch);
    printedEpochs = run.epochs.length;
    if (dashboard && run.epochs.length > shots) {
      shots = run.epochs.length;
      void screenshot(dashboard, `dashboard-${shots}`);
    }
    if (run.info.state === "failed" || run.info.state === "stopped") throw new Error(run.info.note || run.info.state);
    return run.info.state === "done" ? snapshot : undefined;
  }, 360_000);
  const secondsTotal = (Date.now() - startedAt) / 1000;
  if (dashboard) await screenshot(dashboard, "dashboard-done");
  for (const [i, tab] of options.screenshots ? tabs.entries() : []) await screenshot(tab, `join-${i + 1}`);
  report(end, plan, secondsTotal);
}

function report(snapshot, plan, secondsTotal) {
  const { run, nodes } = snapshot;
  const name = (id) => nodes.find((node) => node.node === id)?.name ?? `node ${id}`;
  const links = nodes.flatMap((node) => node.counters.links.map((link) => ({ from: node.node, to: link.peer, activations: link.activations_bytes, side_gradients: link.side_gradients_bytes,
    adapter_gradients: link.adapter_gradients_bytes, cache: link.cache_bytes, other: link.other_bytes })));
  const ways = snapshot.links.map((link) => ({ a: link.a, b: link.b, way: link.relayed ? "relayed" : "direct", round_trip_millis: link.round_trip_millis, bytes_per_second: link.bytes_per_second }));
  const wayOf = ({ from, to }) => ways.find((way) => (way.a === from && way.b === to) || (way.a === to && way.b === from))?.way ?? "";
  console.log("\nLinks, MB sent        activations  side grad.  adapter grad.  cache");
  for (const link of links) console.log(`  ${`${name(link.from)} → ${name(link.to)}`.padEnd(34)} ${[link.activations, link.side_gradients, link.adapter_gradients, link.cache].map((b) => (b / 1e6).toFixed(2).padStart(9)).join(" ")}  ${wayOf(link)}`);
  console.log("\nMemory, MB            fill peak  train peak  backbone now");
  for (const node of nodes) console.log(`  ${node.name.padEnd(20)} ${[node.counters.fill_peak_memory_bytes, node.counters.train_peak_memory_bytes, node.counters.backbone_bytes].map((b) => (b / 1e6).toFixed(1).padStart(9)).join("  ")}`);
  console.log(`\nActivation cache      ${(run.cache_bytes / 1e6).toFixed(1)} MB`);
  const percent = (value) => (value === null ? "not measured" : `${(100 * value).toFixed(1)} %`);
  console.log(`Held-out exact match  before ${percent(run.info.exact_match_before)}, after ${percent(run.info.exact_match_after)}`);
  if (run.example) {
    console.log(`\n  asked   ${run.example.prompt}\n  wanted  ${run.example.expected}\n  base    ${run.example.base}\n  tuned   ${run.example.tuned}`);
  }
  console.log(`\n${secondsTotal.toFixed(1)} s in all, from starting the server`);
  if (options.json) {
    const layersOf = (id) => plan.stages.find((stage) => stage.members.some((member) => member.node === id))?.layers ?? null;
    const data = {
      nodes: nodes.map((node) => ({ id: node.node, name: node.name, kind: node.kind, backend: node.backend, role: roleOf(plan, node.node), layers: layersOf(node.node), gflops: node.gflops,
        peak_memory_bytes: node.counters.peak_memory_bytes, fill_peak_memory_bytes: node.counters.fill_peak_memory_bytes, train_peak_memory_bytes: node.counters.train_peak_memory_bytes,
        backbone_bytes_at_end: node.counters.backbone_bytes })),
      plan,
      epochs: run.epochs,
      losses: run.losses,
      held_out: run.held_out,
      links,
      ways,
      cache_bytes: run.cache_bytes,
      eval: { before: run.info.exact_match_before, after: run.info.exact_match_after },
      example: run.example,
      seconds_total: secondsTotal,
    };
    writeFileSync(options.json, `${JSON.stringify(data, null, 1)}\n`);
    console.log(`written to ${options.json}`);
  }
}

function roleOf(plan, id) {
  const stage = plan.stages.findIndex((s) => s.members.some((member) => member.node === id));
  const trains = plan.train.some((member) => member.node === id);
  return [stage >= 0 ? `fill stage ${stage}` : null, trains ? "train" : null].filter(Boolean).join(", ") || "idle";
}

function printPlan(plan, nodes) {
  const name = (id) => nodes.find((node) => node.node === id)?.name ?? `node ${id}`;
  console.log(`\nPlan: fill in ${plan.stages.length} stage${plan.stages.length === 1 ? "" : "s"}, ${plan.micro_batches} micro-batches; then ${plan.train.length} device${plan.train.length === 1 ? "" : "s"} data-parallel from the cache, gradients as ${plan.gradients}`);
  plan.stages.forEach((stage, i) => console.log(`  stage ${i}: layers ${stage.layers.start + 1}–${stage.layers.end} on ${stage.members.map((m) => name(m.node)).join(" + ")}`));
  for (const reason of plan.reasons) console.log(`  ${name(reason.node)}: ${reason.reason}`);
  console.log("\nEpoch  phase  seconds    loss  backbone s  side s  wait s");
}

function printEpoch(epoch) {
  const cells = [epoch.seconds, epoch.loss, epoch.backbone_seconds, epoch.side_seconds, epoch.wait_seconds].map((value) => value.toFixed(2).padStart(8));
  console.log(`${String(epoch.epoch).padStart(5)}  ${epoch.phase.padEnd(6)}${cells.join(" ")}`);
}

async function screenshot(tab, name) {
  mkdirSync(options.screenshots, { recursive: true });
  await tab.screenshot({ path: path.join(options.screenshots, `${name}.png`), fullPage: true }).catch(() => {});
}

function step(text) {
  console.log(`\n▸ ${text}`);
}

function run(command, args) {
  const result = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (result.status !== 0) {
    console.error(`${command} ${args.join(" ")} failed`);
    process.exit(1);
  }
}
