//! The Worker in which the wasm node lives, so that the page never freezes.

import { loadNode } from './load-node';
import type { NodeEvent, NodeHandle, NodeOptions, StartMessage, ToWorker } from './node-events';

/** The part of the Worker's global scope that is used; the DOM library types `self` as a window. */
interface WorkerScope {
  postMessage(message: NodeEvent): void;
  onmessage: ((event: MessageEvent<ToWorker>) => void) | null;
  close(): void;
  addEventListener(type: 'unhandledrejection', listener: (event: PromiseRejectionEvent) => void): void;
  addEventListener(type: 'error', listener: (event: ErrorEvent) => void): void;
}

const scope = self as unknown as WorkerScope;

/** The stay of this Worker: it starts once, and ends once. */
type Stay =
  | { state: 'new' }
  | { state: 'starting'; leaveWanted: boolean }
  | { state: 'running'; handle: NodeHandle }
  | { state: 'over' };

let stay: Stay = { state: 'new' };

scope.onmessage = ({ data }) => {
  switch (data.type) {
    case 'start':
      if (stay.state === 'new') void start(data);
      break;
    case 'leave':
      void leave();
      break;
  }
};

// A panic or a lost promise inside wasm must reach the person, not only the console.
scope.addEventListener('error', (event) => fail(event.message));
scope.addEventListener('unhandledrejection', (event) => fail(describe(event.reason)));

async function start(message: StartMessage): Promise<void> {
  stay = { state: 'starting', leaveWanted: false };
  try {
    const node = await loadNode(message);
    const handle = await node.start_node(optionsOf(message), message.rtcPort, emit);
    const leaveWanted = stay.state === 'starting' && stay.leaveWanted;
    if (isOver()) return;
    stay = { state: 'running', handle };
    if (leaveWanted) await leave();
  } catch (error) {
    fail(describe(error));
  }
}

async function leave(): Promise<void> {
  switch (stay.state) {
    case 'new':
      emit({ type: 'left', reason: 'You left.' });
      break;
    case 'starting':
      stay.leaveWanted = true;
      break;
    case 'running':
      try {
        await stay.handle.leave();
      } catch (error) {
        fail(describe(error));
      }
      break;
    case 'over':
      break;
  }
}

function emit(event: NodeEvent): void {
  if (isOver()) return;
  scope.postMessage(event);
  if (event.type === 'left' || (event.type === 'error' && event.fatal)) stay = { state: 'over' };
}

function fail(message: string): void {
  emit({ type: 'error', message, fatal: true });
}

function isOver(): boolean {
  return stay.state === 'over';
}

function optionsOf({ origin, secret, name, backend, deviceToken, storageQuotaBytes, memoryBudgetBytes, relay }: StartMessage): NodeOptions {
  return { origin, secret, name, backend, deviceToken, storageQuotaBytes, memoryBudgetBytes, relay };
}

function describe(error: unknown): string {
  if (error instanceof WebAssembly.RuntimeError) return `The node stopped unexpectedly (${error.message}): reload this page to join again.`;
  return error instanceof Error ? error.message : String(error);
}
