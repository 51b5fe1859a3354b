//! Calls of the server's HTTP API, and its two streams.

import { firstLine, readLines } from './ndjson';
import { PROTOCOL_VERSION } from './protocol';
import type {
  ApiErrorBody, AskReply, AskRequest, DatasetInfo, DatasetPreview, Invite, ModelInfo, PlanPreview, RunInfo, RunRequest, RunView, Snapshot, Version,
} from './protocol';
import { serverToken } from './secret';

/** An answer that is not a success; the message is the server's sentence. */
export class ApiFailure extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** The state of the snapshot stream, for the header. */
export type StreamState = { kind: 'connecting' } | { kind: 'live' } | { kind: 'lost'; sentence: string; fatal: boolean };

/** The server, as seen by a page that holds the secret. */
export class Api {
  private constructor(private readonly token: string) {}

  /** Derives the token; needs a secure context. */
  static async open(secret: string): Promise<Api> {
    return new Api(await serverToken(secret));
  }

  invite = (): Promise<Invite> => this.get('/api/invite');
  models = (): Promise<ModelInfo[]> => this.get('/api/models');
  datasets = (): Promise<DatasetInfo[]> => this.get('/api/datasets');
  preview = (dataset: string, model: string): Promise<DatasetPreview> =>
    this.get(`/api/datasets/${encodeURIComponent(dataset)}/preview?model=${encodeURIComponent(model)}`);
  runs = (): Promise<RunInfo[]> => this.get('/api/runs');
  runView = (run: number): Promise<RunView> => this.get(`/api/runs/${run}/view`);
  plan = (request: RunRequest): Promise<PlanPreview> => this.post('/api/plan', request);
  start = (request: RunRequest): Promise<RunInfo> => this.post('/api/runs', request);
  ask = (request: AskRequest): Promise<AskReply> => this.post('/api/ask', request);

  async command(run: number, command: 'pause' | 'resume' | 'stop'): Promise<void> {
    await this.call(`/api/runs/${run}/${command}`, { method: 'POST' });
  }

  async upload(file: File): Promise<DatasetInfo> {
    const headers = { 'content-type': file.type || 'application/octet-stream' };
    const response = await this.call(`/api/datasets?name=${encodeURIComponent(file.name)}`, { method: 'POST', body: file, headers });
    return (await response.json()) as DatasetInfo;
  }

  /** One file of a run's adapter, for saving. */
  async adapterFile(run: number, name: 'adapter_model.safetensors' | 'adapter_config.json'): Promise<Blob> {
    return (await this.call(`/api/runs/${run}/adapter/${name}`)).blob();
  }

  /** Follows `/api/snapshots`, reconnecting with growing pauses, until `signal` is aborted. */
  async followSnapshots(signal: AbortSignal, onSnapshot: (snapshot: Snapshot) => void, onState: (state: StreamState) => void): Promise<void> {
    for (let attempt = 0; !signal.aborted; attempt += 1) {
      try {
        const response = await this.call('/api/snapshots', { signal });
        if (!response.body) throw new Error('this browser cannot read a streamed answer');
        await readLines(response.body, (line) => {
          attempt = 0;
          onState({ kind: 'live' });
          onSnapshot(JSON.parse(line) as Snapshot);
        });
        throw new Error('the server closed the connection');
      } catch (error) {
        if (signal.aborted) return;
        const refused = error instanceof ApiFailure && (error.status === 401 || error.status === 403);
        onState({ kind: 'lost', sentence: sentenceOf(error), fatal: refused });
        if (refused) return;
        await pause(reconnectMillis(attempt), signal);
      }
    }
  }

  /** The newest snapshot alone. */
  async snapshot(): Promise<Snapshot> {
    const ended = new AbortController();
    const response = await this.call('/api/snapshots', { signal: ended.signal });
    if (!response.body) throw new Error('this browser cannot read a streamed answer');
    try {
      const line = await firstLine(response.body);
      return JSON.parse(line) as Snapshot;
    } finally {
      ended.abort();
    }
  }

  private async get<T>(path: string): Promise<T> {
    return (await (await this.call(path)).json()) as T;
  }

  private async post<T>(path: string, body: unknown): Promise<T> {
    const response = await this.call(path, { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json' } });
    return (await response.json()) as T;
  }

  private async call(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    headers.set('authorization', `Bearer ${this.token}`);
    const response = await fetch(path, { ...init, headers, cache: 'no-store' });
    if (!response.ok) throw new ApiFailure(response.status, await refusalOf(response));
    return response;
  }
}

/** `null` when page and server can talk, otherwise one sentence; `reload` says whether reloading will help. */
export async function checkVersion(): Promise<{ sentence: string; reload: boolean } | null> {
  let version: Version;
  try {
    const response = await fetch('/api/version', { cache: 'no-store' });
    if (!response.ok) throw new Error(`status ${response.status}`);
    version = (await response.json()) as Version;
  } catch {
    return { sentence: 'The home server does not answer: check that it is running and that this device is in the same Wi-Fi, then reload.', reload: true };
  }
  return versionProblem(version);
}

/** Compares protocol majors. */
export function versionProblem(version: Version): { sentence: string; reload: boolean } | null {
  const theirs = version.protocol.major;
  const ours = PROTOCOL_VERSION.major;
  if (theirs === ours) return null;
  return theirs > ours
    ? { sentence: `This page is older than the home server (protocol ${ours}, the server speaks ${theirs}): reload it.`, reload: true }
    : { sentence: `This page is newer than the home server (protocol ${ours}, the server speaks ${theirs}): restart the server with its current build, then reload.`, reload: true };
}

/** What to show for anything that was thrown. */
export function sentenceOf(error: unknown): string {
  if (error instanceof ApiFailure) return error.message;
  if (error instanceof TypeError) return 'The home server does not answer: check that it is running and that this device is in the same Wi-Fi.';
  return error instanceof Error ? sentence(error.message) : sentence(String(error));
}

/** Pause before try number `attempt + 1`: half a second, doubling, at most five. */
export function reconnectMillis(attempt: number): number {
  return Math.min(5000, 500 * 2 ** Math.min(attempt, 10));
}

/** First letter upper case, unless it is that of a file or an address, a full stop at the end. */
export function sentence(text: string): string {
  const trimmed = text.trim();
  if (trimmed === '') return '';
  // A file keeps its name.
  const upper = /^\S+\.\w/.test(trimmed) ? trimmed : trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(upper) ? upper : `${upper}.`;
}

async function refusalOf(response: Response): Promise<string> {
  if (response.status === 401 || response.status === 403) {
    return 'The home server does not know this invitation: scan the current QR code, or copy the whole address that the server printed.';
  }
  try {
    const body = (await response.json()) as Partial<ApiErrorBody>;
    if (typeof body.error === 'string') return sentence(body.error);
  } catch {
    // Not JSON: fall through to the general sentence.
  }
  return `The home server answered with status ${response.status}: try again, or look at the terminal it runs in.`;
}

function pause(millis: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, millis);
    signal.addEventListener('abort', end);
  });
}
