//! One stay of this device in the swarm: the Worker, its bridge to WebRTC, and the wake lock.

import { sentence } from '../api';
import type { BackendChoice, NodeEvent, StartMessage, ToWorker } from '../node-events';
import { startRtcBridge } from '../rtc-bridge';

const WASM_URL = '/assets/node_bg.wasm';
const WORKER_URL = '/assets/worker.js';
/** Time the others get to take over from this device before its Worker is ended. */
const HAND_OVER_MILLIS = 13_000;
/** The same at a second wish to leave: time to say goodbye. */
const LEAVE_MILLIS = 2000;

export interface StayOptions {
  secret: string;
  name: string;
  backend: BackendChoice;
  deviceToken: string;
  storageQuotaBytes: number;
  memoryBudgetBytes: number;
}

/** A started stay. */
export interface Stay {
  /** Says goodbye, and lets the others take over first; at once when called again. A `left` event follows even if the node no longer answers. */
  leave(): void;
}

let compiled: Promise<WebAssembly.Module> | null = null;
let onFetched: (fraction: number | null) => void = () => undefined;

/** Fetches and compiles the node, once; the latest `onProgress` gets the part that has arrived, 0 … 1, where it is known. */
export function compileNode(onProgress: (fraction: number | null) => void): Promise<WebAssembly.Module> {
  onFetched = onProgress;
  compiled ??= fetchNode().catch((error: unknown) => {
    compiled = null;
    throw error;
  });
  return compiled;
}

/** Starts the node; every event goes to `onEvent`, the last one is `left` or a fatal `error`. */
export function startStay(wasmModule: WebAssembly.Module, options: StayOptions, onEvent: (event: NodeEvent) => void): Stay {
  const worker = new Worker(WORKER_URL, { type: 'module', name: 'barycenter node' });
  const channel = new MessageChannel();
  const bridge = startRtcBridge(channel.port1);
  let over = false;
  let wished = false;
  const end = (event: NodeEvent): void => {
    if (over) return;
    over = true;
    bridge.close();
    channel.port1.close();
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
  const start: StartMessage = { type: 'start', wasmModule, origin: location.origin, rtcPort: channel.port2, ...options };
  worker.postMessage(start, [channel.port2]);
  return {
    leave() {
      const millis = wished ? LEAVE_MILLIS : HAND_OVER_MILLIS;
      wished = true;
      worker.postMessage({ type: 'leave' } satisfies ToWorker);
      setTimeout(() => end({ type: 'left', reason: 'You left.' }), millis);
    },
  };
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

async function fetchNode(): Promise<WebAssembly.Module> {
  const response = await fetch(WASM_URL);
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
