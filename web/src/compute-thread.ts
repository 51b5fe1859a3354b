//! A worker that computes for the node's Worker, on the memory of both (see `load-node.ts`).

import type { ThreadStart, ThreadedModule } from './load-node';

/** The part of the worker's global scope that is used; the DOM library types `self` as a window. */
interface WorkerScope {
  postMessage(message: 'loaded'): void;
  onmessage: ((event: MessageEvent<ThreadStart>) => void) | null;
}

const scope = self as unknown as WorkerScope;
const THREADED_URL = '/assets/node_threads.js';

scope.onmessage = ({ data: { module, memory, failures } }) => void compute(module, memory, failures);

async function compute(module: WebAssembly.Module, memory: WebAssembly.Memory, failures: string): Promise<void> {
  const node = (await import(THREADED_URL)) as ThreadedModule;
  node.initSync({ module, memory });
  scope.postMessage('loaded');
  try {
    node.compute_thread();
  } catch (error) {
    // The Worker that shared the work waits for it without an end, so the page has to hear this.
    new BroadcastChannel(failures).postMessage(error instanceof Error ? error.message : String(error));
  }
}
