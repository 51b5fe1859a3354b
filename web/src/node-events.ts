//! The contract between the join page, its Worker, and the wasm node (`node-wasm`).
//!
//! 1. The page compiles `/assets/node_bg.wasm`, or `/assets/node_threads_bg.wasm` where several threads can compute, once and
//!    posts {@link StartMessage} to the Worker, with one end of a `MessageChannel` transferred; the page keeps the other end for
//!    `startRtcBridge`.
//! 2. The Worker loads the module's script (wasm-bindgen, target web; `load-node.ts`), initialises it with the compiled module
//!    and calls `start_node(options, rtcPort, onEvent)`; a returned promise is awaited, a rejection becomes a fatal `error`.
//! 3. Every {@link NodeEvent} goes to the page unchanged. Fields may be `null` or missing where marked so.
//! 4. `leave()` of the handle lets the others take over what this device holds, which a `leaving` event tells; called again it waits no
//!    longer. Then it says goodbye to the server, frees the engine and ends with a `left` event.
//!
//! Tags and fields are serde's: `#[serde(tag = "type", rename_all = "snake_case")]`; numbers are JS numbers, no bigint.

import type { NodeSource } from './load-node';
import type { BackendReport, Counters, PhaseKind } from './protocol';

/** Which back end the page asks for; `auto` = GPU unless there is none or only a software one. */
export type BackendChoice = 'auto' | 'cpu' | 'gpu';

/** What `start_node` gets, as a plain object. */
export interface NodeOptions {
  /** `https://host:port`, where `/api` lives. */
  origin: string;
  /** Room secret, 32 hexadecimal digits. */
  secret: string;
  name: string;
  backend: BackendChoice;
  /** Random, kept by the device between visits. */
  deviceToken: string;
  /** Cache storage the device offers, bytes. */
  storageQuotaBytes: number;
  /** Memory the device offers, bytes. */
  memoryBudgetBytes: number;
  /** All links go through the server, for a network that is known to allow no others. */
  relay: boolean;
}

/** Page → Worker; the transfer list holds `rtcPort`. */
export interface StartMessage extends NodeOptions, NodeSource {
  type: 'start';
  rtcPort: MessagePort;
}

/** Page → Worker; a second `leave` means at once. */
export type ToWorker = StartMessage | { type: 'leave' };

/** Wasm node → Worker → page. */
export type NodeEvent =
  /** One thing was looked at before joining ("engine", "backend", "storage" …). `ok: false` is a warning, not the end. */
  | { type: 'check'; name: string; ok: boolean; text: string }
  /** A forward and backward pass against known answers, and the measured speed. `ok: false` ends the stay. */
  | { type: 'self_test'; ok: boolean; backend: BackendReport; gflops: number; largest_error: number; seconds: number }
  /** The server took the node in; sent again after each reconnect. */
  | { type: 'joined'; node: number }
  /** What the node does now, in words, and its place in the run where it has one. Replaces the last one. */
  | {
      type: 'activity';
      text: string;
      phase?: PhaseKind | null;
      /** Layers held, `[first, end)`. */
      layers?: [number, number] | null;
      /** Slots of the mini-batch in the train phase, `[first, end)`. */
      slots?: [number, number] | null;
      epoch?: number | null;
      epochs?: number | null;
      step?: number | null;
      steps_per_epoch?: number | null;
    }
  /** A long step. `fraction` 0 … 1, absent when unknown; `1` ends it. */
  | { type: 'progress'; text: string; fraction?: number | null }
  /** About once a second. */
  | { type: 'counters'; counters: Counters }
  /** A link to a peer came up or went down. */
  | { type: 'link'; peer: number; up: boolean; round_trip_millis?: number | null; bytes_per_second?: number | null; relayed?: boolean | null; reason?: string | null }
  /** The server cannot be reached; the node tries again by itself. */
  | { type: 'reconnecting'; reason: string; attempt: number }
  /** The node was asked to leave: the others take over first. */
  | { type: 'leaving' }
  /** The stay is over, on purpose or because the server said so. Last event. */
  | { type: 'left'; reason: string }
  /** Something went wrong. `fatal`: the node has ended, last event; otherwise it goes on. */
  | { type: 'error'; message: string; fatal: boolean };

/** What `start_node` returns. */
export interface NodeHandle {
  leave(): void | Promise<void>;
}

/** The exports of `/assets/node.js` that the Worker uses. */
export interface NodeModule {
  default(init: { module_or_path: WebAssembly.Module | string; memory?: WebAssembly.Memory }): Promise<unknown>;
  /** What the reason for the processor ends with: why it computes with one thread. */
  remark_on_threads(remark: string): void;
  start_node(options: NodeOptions, rtcPort: MessagePort, onEvent: (event: NodeEvent) => void): NodeHandle | Promise<NodeHandle>;
}
