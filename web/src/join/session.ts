//! One stay of this device in the swarm: the Worker, its bridge to WebRTC, and the wake lock.

import { sentence } from '../api';
import type { BackendChoice, NodeEvent, StartMessage, ToWorker } from '../node-events';
import { startRtcBridge } from '../rtc-bridge';
import type { ThreadPlan } from '../threads';

const WASM_URL = '/assets/node_bg.wasm';
const THREADED_WASM_URL = '/assets/node_threads_bg.wasm';
const WORKER_URL = '/assets/worker.js';
/** Time the others get to take over from this device before its Worker is ended: somewhat longer than the node waits itself. */
const HAND_OVER_MILLIS = 70_000;
/** Time to say goodbye where nobody waits for that. */
const LEAVE_MILLIS = 2000;

export interface StayOptions {
  secret: string;
  name: string;
  backend: BackendChoice;
  deviceToken: string;
  storageQuotaBytes: number;
  memoryBudgetBytes: number;
  relay: boolean;
}

/** A started stay. */
export interface Stay {
  /** Lets the others take over and says goodbye; called again, at once. A `left` event follows even if the node no longer answers. */
  leave(): void;
  /** Says goodbye without waiting for the others. */
  leaveAtOnce(): void;
}

/** The compiled node, and with how many threads it is to compute. */
export interface CompiledNode {
  wasmModule: WebAssembly.Module;
  threads: number;
  threadsRemark: string;
}

let compiled: Promise<CompiledNode> | null = null;
let onFetched: (fraction: number | null) => void = () => undefined;

/** Fetches and compiles the node, once; the latest `onProgress` gets the part that has arrived, 0 … 1, where it is known. */
export function compileNode(plan: ThreadPlan, onProgress: (fraction: number | null) => void): Promise<CompiledNode> {
  onFetched = onProgress;
  compiled ??= fetchPlanned(plan).catch((error: unknown) => {
    compiled = null;
    throw error;
  });
  return compiled;
}

/** Starts the node; every event goes to `onEvent`, the last one is `left` or a fatal `error`. */
export function startStay(node: CompiledNode, options: StayOptions, onEvent: (event: NodeEvent) => void): Stay {
  const worker = new Worker(WORKER_URL, { type: 'module', name: 'barycenter node' });
  const channel = new MessageChannel();
  const bridge = startRtcBridge(channel.port1);
  const failures = new BroadcastChannel(`barycenter threads ${crypto.randomUUID()}`);
  let over = false;
  let isLeaving = false;
  const end = (event: NodeEvent): void => {
    if (over) return;
    over = true;
    bridge.close();
    channel.port1.close();
    failures.close();
    worker.terminate();
    onEvent(event);
  };
  worker.onmessage = ({ data }: MessageEvent<NodeEvent>) => {
    if (data.type === 'left' || (data.type === 'error' && data.fatal)) end(data);
    else if (!over) onEvent(data);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    end({ type: 'error', fatal: true, message: sentence(event.message || 'the compute engine could not be loaded: reload this page') });
  };
  failures.onmessage = ({ data }: MessageEvent<string>) => {
    end({ type: 'error', fatal: true, message: `The node stopped unexpectedly (${data}): reload this page to join again.` });
  };
  const start: StartMessage = { type: 'start', origin: location.origin, rtcPort: channel.port2, failures: failures.name, ...node, ...options };
  worker.postMessage(start, [channel.port2]);
  const leave = (): void => {
    worker.postMessage({ type: 'leave' } satisfies ToWorker);
    setTimeout(() => end({ type: 'left', reason: 'You left.' }), isLeaving ? LEAVE_MILLIS : HAND_OVER_MILLIS);
    isLeaving = true;
  };
  const leaveAtOnce = (): void => {
    if (!isLeaving) leave();
    leave();
  };
  return { leave, leaveAtOnce };
}

/** Keeps the screen on until closed, asking again whenever the page comes back to the front. */
export function keepScreenOn(onChange: (state: 'on' | 'off' | 'unsupported') => void): () => void {
  if (!('wakeLock' in navigator)) {
    onChange('unsupported');
    return () => undefined;
  }
  let closed = false;
  let lock: WakeLockSentinel | null = null;
  const ask = async (): Promise<void> => {
    if (closed || document.visibilityState !== 'visible' || (lock && !lock.released)) return;
    try {
      const granted = await navigator.wakeLock.request('screen');
      if (closed) return void granted.release();
      lock = granted;
      onChange('on');
      granted.addEventListener('release', () => !closed && onChange('off'));
    } catch {
      // Refused when the battery is low; the next return to the page asks again.
      onChange('off');
    }
  };
  const visible = (): void => void ask();
  document.addEventListener('visibilitychange', visible);
  void ask();
  return () => {
    closed = true;
    document.removeEventListener('visibilitychange', visible);
    void lock?.release();
  };
}

async function fetchPlanned({ threads, remark }: ThreadPlan): Promise<CompiledNode> {
  if (threads === 1) return { wasmModule: await fetchNode(WASM_URL), threads, threadsRemark: remark };
  try {
    return { wasmModule: await fetchNode(THREADED_WASM_URL), threads, threadsRemark: '' };
  } catch {
    // Built on a computer that could not make it, or too much for this browser.
    return { wasmModule: await fetchNode(WASM_URL), threads: 1, threadsRemark: 'one thread, because the server offers no module with threads that this browser takes' };
  }
}

async function fetchNode(address: string): Promise<WebAssembly.Module> {
  const response = await fetch(address);
  if (!response.ok || !response.body) throw new Error(`The compute engine could not be fetched (status ${response.status}): reload this page.`);
  // The length on the wire says nothing about a compressed body, so only an uncompressed one shows a fraction.
  const length = response.headers.has('content-encoding') ? 0 : Number(response.headers.get('content-length') ?? 0);
  let arrived = 0;
  const counted = response.body.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        arrived += chunk.byteLength;
        onFetched(length > 0 ? Math.min(1, arrived / length) : null);
        controller.enqueue(chunk);
      },
    }),
  );
  return WebAssembly.compileStreaming(new Response(counted, { headers: { 'content-type': 'application/wasm' } }));
}
