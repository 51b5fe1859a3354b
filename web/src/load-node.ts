//! Loads the wasm node in a Worker: the module with threads and its compute threads, or the one without.
//!
//!   page ── Worker (this file, node_threads.js) ─┬─ memory ─┬─ compute-thread.js
//!                                                └──────────┴─ compute-thread.js …
//!
//! All instances run the same module on one shared memory. The compute threads wait inside it for work that the Worker shares
//! with them (`crates/engine/src/cpu/pool.rs`); they end with the Worker.

import type { NodeModule } from './node-events';

/** What to load. */
export interface NodeSource {
  /** The module with threads if there are to be more than one, or else the other; compiled, or where it is. */
  wasmModule: WebAssembly.Module | string;
  threads: number;
  /** Why there is only one thread; empty where there are more. */
  threadsRemark: string;
  memoryBudgetBytes: number;
  /** Name of a `BroadcastChannel` that hears why a compute thread broke: this Worker may be waiting for it and hears nothing. */
  failures: string;
}

/** What a compute thread is started with. */
export interface ThreadStart {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  failures: string;
}

/** The exports of `node_threads.js` that are needed beyond the node's. */
export interface ThreadedModule extends NodeModule {
  initSync(init: { module: WebAssembly.Module; memory: WebAssembly.Memory }): unknown;
  share_with_threads(threads: number): void;
  compute_thread(): void;
}

const SINGLE_URL = '/assets/node.js';
const SINGLE_WASM_URL = '/assets/node_bg.wasm';
const THREADED_URL = '/assets/node_threads.js';
const COMPUTE_THREAD_URL = '/assets/compute-thread.js';
/** Time for a compute thread to load what the browser has already compiled. */
const START_MILLIS = 20_000;
const PAGE_BYTES = 65_536;
/** More than the module asks for at its start; untouched memory costs nothing. */
const FIRST_PAGES = 256;
/** As much as 32-bit addresses reach, which the module is linked for. */
const MOST_PAGES = 65_536;

/** Loads what was asked for; if the threads cannot be started, the module without them, and the reason is remembered by it. */
export async function loadNode(source: NodeSource): Promise<NodeModule> {
  let { threadsRemark } = source;
  if (source.threads > 1) {
    try {
      return await loadThreaded(source);
    } catch (error) {
      threadsRemark = `one thread, because the others did not start (${error instanceof Error ? error.message : String(error)})`;
    }
  }
  const node = (await import(SINGLE_URL)) as NodeModule;
  await node.default({ module_or_path: source.threads > 1 ? SINGLE_WASM_URL : source.wasmModule });
  node.remark_on_threads(threadsRemark);
  return node;
}

async function loadThreaded({ wasmModule, threads, memoryBudgetBytes, failures }: NodeSource): Promise<NodeModule> {
  const module = typeof wasmModule === 'string' ? await WebAssembly.compileStreaming(fetch(wasmModule)) : wasmModule;
  const memory = sharedMemory(memoryBudgetBytes);
  const node = (await import(THREADED_URL)) as ThreadedModule;
  await node.default({ module_or_path: module, memory });
  const workers: Worker[] = [];
  try {
    await Promise.all(Array.from({ length: threads - 1 }, () => startThread({ module, memory, failures }, workers)));
  } catch (error) {
    for (const worker of workers) worker.terminate();
    throw error;
  }
  node.share_with_threads(threads);
  return node;
}

/**
 * Memory that may grow to what the device offers, and as much again for what is not counted: pieces that lie unused between
 * others, files on their way. Browsers reserve addresses for all of it, and phones have few, so less is tried too.
 */
function sharedMemory(budgetBytes: number): WebAssembly.Memory {
  const most = Math.min(MOST_PAGES, Math.ceil((2 * budgetBytes) / PAGE_BYTES) + FIRST_PAGES);
  try {
    return new WebAssembly.Memory({ initial: FIRST_PAGES, maximum: most, shared: true });
  } catch {
    return new WebAssembly.Memory({ initial: FIRST_PAGES, maximum: Math.ceil(most * 0.6), shared: true });
  }
}

/** Starts a compute thread, and waits until it has loaded the module. */
function startThread(start: ThreadStart, workers: Worker[]): Promise<void> {
  return new Promise((loaded, failed) => {
    const worker = new Worker(COMPUTE_THREAD_URL, { type: 'module', name: 'barycenter compute thread' });
    workers.push(worker);
    const late = setTimeout(() => failed(new Error('a worker took too long')), START_MILLIS);
    worker.onmessage = () => {
      clearTimeout(late);
      loaded();
    };
    worker.onerror = (event) => {
      clearTimeout(late);
      event.preventDefault();
      failed(new Error(event.message || 'a worker could not be loaded'));
    };
    worker.postMessage(start);
  });
}
