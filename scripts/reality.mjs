// `node scripts/reality.mjs`: the simulator against reality. Trains the demo on this computer with 1, 2, 3 and 4 native nodes,
// predicts the same from what the nodes measured of themselves, and writes predicted and measured epoch times to docs/SCALING.md.
//
// Each node computes with one thread; the simulator is told how many cores they share, what one node took for the training
// alone, and what the threads that carry links took of the processors for each byte in a run of two nodes (Linux's /proc). With
// the rights (root on Linux) each
// node has a network namespace of its own behind a shaped link:
//
//   server 10.77.0.1 ── switch ──┬── 10.77.0.11 node 1     every link: --mbit, --delay-ms one way
//                                ├── 10.77.0.12 node 2
//                                └── …
//
// Without them everything goes over loopback, and the table says so.
//
// usage: node scripts/reality.mjs [--profile debug|release] [--nodes 1,2,3,4] [--rounds 2] [--epochs 4] [--mbit 100] [--delay-ms 2] [--loopback] [--no-write]
//   [--keep FOLDER]: where to put what was measured, as `barycenter simulate --measured` reads it

import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync, readdirSync, writeFileSync, mkdirSync, mkdtempSync, rmSync, existsSync } from "node:fs";
import { tmpdir, cpus, loadavg } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { Swarm, programPath } from "./swarm.mjs";

const { values: options } = parseArgs({
  options: {
    profile: { type: "string", default: existsSync(programPath("release")) ? "release" : "debug" },
    nodes: { type: "string", default: "1,2,3,4" },
    rounds: { type: "string", default: "2" },
    epochs: { type: "string", default: "4" },
    mbit: { type: "string", default: "100" },
    "delay-ms": { type: "string", default: "2" },
    loopback: { type: "boolean", default: false },
    "no-write": { type: "boolean", default: false },
    keep: { type: "string" },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const counts = options.nodes.split(",").map(Number);
const [rounds, epochs, mbit, delayMillis] = ["rounds", "epochs", "mbit", "delay-ms"].map((name) => Number(options[name]));
/** Predicted and measured may differ by so much. */
const GOAL = 0.15;
const [HUB, SERVER_PORT] = ["baryhub", "baryserver"];
const demo = JSON.parse(readFileSync(path.join(root, "assets/demo/demo.json"), "utf8"));
if (options.keep) mkdirSync(options.keep, { recursive: true });
const scratch = mkdtempSync(path.join(tmpdir(), "barycenter-reality-"));

let network = "loopback, not shaped";
/** Whether what a node sends, and what it receives, goes through one shaped port. */
let rateIsShaped = false;
const shaped = !options.loopback && layNetwork(Math.max(...counts));
try {
  await main();
} finally {
  if (shaped) removeNetwork(Math.max(...counts));
  rmSync(scratch, { recursive: true, force: true });
}

async function main() {
  console.log(`network: ${network}; ${cpus().length} cores, load ${loadavg()[0].toFixed(1)}`);
  const [rows, all] = [[], []];
  for (const count of counts) {
    let best = null;
    for (let round = 0; round < rounds; round++) {
      // The node's own speed is measured beside each run, because what else the computer does changes.
      const alone = times((await train(1)).snapshot.run.epochs);
      const pair = count > 1 ? (await train(2)).links : { link_seconds: 0, link_bytes: 0 };
      const { nodes, links, run } = (await train(count)).snapshot;
      const measured = times(run.epochs);
      const ids = nodes.map((node) => node.node).sort((a, b) => a - b);
      const file = path.join(options.keep ?? scratch, `measured-${count}-${round}.json`);
      writeFileSync(file, JSON.stringify({
        model: path.join(root, "assets/demo"), train: path.join(root, "assets/demo/train.jsonl"), held_out: path.join(root, "assets/demo/heldout.jsonl"),
        batch: demo.batch, epochs, reduction: demo.reduction, seed: demo.seed, gradients: run.plan.gradients, min_stages: Math.min(2, count), cores: cpus().length, alone, pair, ...(rateIsShaped && { port: mbit * 1e6 / 8 }),
        nodes: ids.map((id) => nodes.find((node) => node.node === id)).map((node) => ({ name: node.name, gflops: node.gflops })),
        measured,
        links: links.map((link) => ({ a: ids.indexOf(link.a), b: ids.indexOf(link.b), round_trip_millis: link.round_trip_millis, bytes_per_second: link.bytes_per_second })),
      }));
      const predicted = JSON.parse(execFileSync(programPath(options.profile), ["simulate", "--measured", file], { encoding: "utf8" }));
      const row = { count, predicted: times(predicted.epochs), measured, stages: run.plan.stages.length, slowestLink: Math.min(...links.map((l) => l.bytes_per_second)) };
      print(row);
      all.push(row);
      if (!best || row.measured.fill_seconds + row.measured.train_seconds < best.measured.fill_seconds + best.measured.train_seconds) best = row;
    }
    rows.push(best);
  }
  const rounded = tally(all);
  console.log(rounded);
  if (!options["no-write"]) write(rows, rounded);
}

/** Starts a server and nodes, trains, stops all; the last snapshot, and what their links carried and took of the processors. */
async function train(count) {
  const swarm = new Swarm({ profile: options.profile, listen: shaped ? "10.77.0.1:0" : "127.0.0.1:0" });
  try {
    await swarm.startServer();
    for (let i = 0; i < count; i++) {
      swarm.startNativeNode(`node ${i + 1}`, ["--device", "cpu", "--memory-mb", "4000"], { through: shaped ? ["ip", "netns", "exec", `bary${i + 1}`] : [], env: { RAYON_NUM_THREADS: "1" } });
    }
    const before = linkWork(swarm, await swarm.waitForNodes(count));
    const { run } = await swarm.call("POST", "/api/runs", { model: "demo", dataset: "demo-home", min_stages: Math.min(2, count), use_all_nodes: true, epochs, exact_match_rows: 0 });
    const snapshot = await swarm.snapshots((snapshot) => {
      if (snapshot.run?.info.run !== run) return undefined;
      if (["failed", "stopped"].includes(snapshot.run.info.state)) throw new Error(snapshot.run.info.note);
      return snapshot.run.info.state === "done" ? snapshot : undefined;
    }, 300_000);
    const after = linkWork(swarm, snapshot);
    return { snapshot, links: Object.fromEntries(Object.keys(after).map((name) => [name, after[name] - before[name]])) };
  } finally {
    await swarm.stop();
  }
}

/** Processor seconds of the threads that carry the nodes' links, and bytes that the nodes have sent each other. */
function linkWork(swarm, { nodes }) {
  const bytes = nodes.flatMap((node) => node.counters.links).reduce((sum, link) => sum + Object.entries(link).reduce((of, [name, value]) => (name.endsWith("_bytes") ? of + value : of), 0), 0);
  return { link_seconds: swarm.nodeProcesses().reduce((sum, process) => sum + threadSeconds(process, "links"), 0), link_bytes: bytes };
}

/** Processor seconds of a process's threads of this name; 0 where there is no /proc. */
function threadSeconds(process, name) {
  const tasks = `/proc/${process}/task`;
  if (!existsSync(tasks)) return 0;
  return readdirSync(tasks).reduce((sum, task) => {
    // "id (name) state …": of what follows the name, the 12th and 13th are ticks of 10 ms in the program and in the kernel
    const stat = readFileSync(`${tasks}/${task}/stat`, "utf8");
    const [open, close] = [stat.indexOf("("), stat.lastIndexOf(")")];
    const fields = stat.slice(close + 2).split(" ");
    return stat.slice(open + 1, close) === name ? sum + (Number(fields[11]) + Number(fields[12])) / 100 : sum;
  }, 0);
}

/** Seconds of the fill epoch and of the median epoch from the cache, with what went into the side network. */
function times(list) {
  const trained = list.slice(1).sort((a, b) => a.seconds - b.seconds);
  const median = trained[trained.length >> 1];
  return {
    fill_seconds: list[0].seconds, fill_side_seconds: list[0].side_seconds ?? 0,
    train_seconds: median.seconds,
    train_side_seconds: median.side_seconds ?? 0,
  };
}

function off(predicted, measured) {
  return `${predicted >= measured ? "+" : "−"}${Math.abs((predicted / measured - 1) * 100).toFixed(0)} %`;
}

function print({ count, predicted, measured, stages }) {
  const cell = (name) => `${predicted[name].toFixed(2)} / ${measured[name].toFixed(2)} s (${off(predicted[name], measured[name])})`;
  console.log(`${count} node${count > 1 ? "s" : ""}, ${stages} stage${stages > 1 ? "s" : ""}: fill ${cell("fill_seconds")}, from the cache ${cell("train_seconds")}; predicted / measured, load ${loadavg()[0].toFixed(1)}`);
}

/** How many figures of all rounds are as close as they should be, and the worst of them. */
function tally(all) {
  const ratios = all.flatMap(({ predicted, measured }) => ["fill_seconds", "train_seconds"].map((name) => predicted[name] / measured[name] - 1));
  const worst = ratios.reduce((far, ratio) => (Math.abs(ratio) > Math.abs(far) ? ratio : far), 0);
  return `Of the ${ratios.length} figures of all rounds ${ratios.filter((ratio) => Math.abs(ratio) <= GOAL).length} are within ${GOAL * 100} %; the worst is off by ${off(1 + worst, 1)}.`;
}

function write(rows, rounded) {
  const file = path.join(root, "docs/SCALING.md");
  const cells = rows.map(({ count, predicted, measured, stages }) => `| ${count} | ${stages} | ${predicted.fill_seconds.toFixed(2)} | ${measured.fill_seconds.toFixed(2)} | ${off(predicted.fill_seconds, measured.fill_seconds)} | ${predicted.train_seconds.toFixed(2)} | ${measured.train_seconds.toFixed(2)} | ${off(predicted.train_seconds, measured.train_seconds)} |`);
  const table = ["| nodes | stages | fill, predicted s | measured s | | from the cache, predicted s | measured s | |", "|---|---|---|---|---|---|---|---|", ...cells, "",
    `Network: ${network}. ${cpus().length} cores, one thread a node, ${options.profile} build, the best of ${rounds} rounds. ${rounded}`].join("\n");
  const [before, after] = ["<!-- reality -->", "<!-- /reality -->"];
  const text = readFileSync(file, "utf8");
  const start = text.indexOf(before) + before.length;
  writeFileSync(file, `${text.slice(0, start)}\n${table}\n${text.slice(text.indexOf(after))}`);
  console.log(`written to ${file}`);
}

/** Namespaces with a shaped link each; false where the rights or the tools are not there. */
function layNetwork(count) {
  const run = (...words) => spawnSync(words[0], words.slice(1), { encoding: "utf8" });
  const must = (...words) => {
    const result = run(...words);
    if (result.status !== 0) throw new Error(`${words.join(" ")}: ${(result.stderr ?? result.error?.message ?? "").trim()}`);
  };
  try {
    removeNetwork(count);
    // The switch has a namespace too: packets that cross it meet none of this computer's packet filters.
    must("ip", "netns", "add", HUB);
    must("ip", "-n", HUB, "link", "add", "switch", "type", "bridge");
    must("ip", "-n", HUB, "link", "set", "switch", "up");
    must("ip", "link", "add", SERVER_PORT, "type", "veth", "peer", "name", "server", "netns", HUB);
    must("ip", "-n", HUB, "link", "set", "server", "master", "switch", "up");
    must("ip", "addr", "add", "10.77.0.1/24", "dev", SERVER_PORT);
    must("ip", "link", "set", SERVER_PORT, "up");
    let shaping = `${mbit} Mbit/s and ${delayMillis} ms one way from node to node`;
    for (let i = 1; i <= count; i++) {
      must("ip", "netns", "add", `bary${i}`);
      must("ip", "-n", HUB, "link", "add", `port${i}`, "type", "veth", "peer", "name", "eth0", "netns", `bary${i}`);
      must("ip", "-n", HUB, "link", "set", `port${i}`, "master", "switch", "up");
      must("ip", "-n", `bary${i}`, "addr", "add", `10.77.0.${10 + i}/24`, "dev", "eth0");
      must("ip", "-n", `bary${i}`, "link", "set", "eth0", "up");
      must("ip", "-n", `bary${i}`, "link", "set", "lo", "up");
      // Looking for names in the local network needs a way for multicast, as a default route would be.
      must("ip", "-n", `bary${i}`, "route", "add", "224.0.0.0/4", "dev", "eth0");
      // What a node sends is shaped in its namespace, what it receives at the switch.
      for (const [where, device] of [[`bary${i}`, "eth0"], [HUB, `port${i}`]]) {
        const netem = run("tc", "-n", where, "qdisc", "add", "dev", device, "root", "netem", "rate", `${mbit}mbit`, "delay", `${delayMillis / 2}ms`, "limit", "20000");
        if (netem.status === 0) continue;
        const tbf = run("tc", "-n", where, "qdisc", "add", "dev", device, "root", "tbf", "rate", `${mbit}mbit`, "burst", "64kb", "latency", "200ms");
        shaping = tbf.status === 0 ? `${mbit} Mbit/s, no added delay (this kernel has no netem)` : "not shaped (this kernel has neither netem nor tbf)";
      }
    }
    network = `a network namespace for each node, ${shaping}`;
    rateIsShaped = !shaping.startsWith("not shaped");
    return true;
  } catch (error) {
    removeNetwork(count);
    console.log(`no network namespaces (${error.message}): loopback instead`);
    return false;
  }
}

function removeNetwork(count) {
  for (let i = 1; i <= count; i++) spawnSync("ip", ["netns", "del", `bary${i}`]);
  spawnSync("ip", ["netns", "del", HUB]);
}
