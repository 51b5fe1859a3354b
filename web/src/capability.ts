//! What this device can do for the swarm, asked in the order in which the answers explain each other.

import type { BackendChoice } from './node-events';

/** One line of the check list. */
export interface Finding {
  name: 'secure' | 'engine' | 'gpu';
  /** `stop` = cannot join; `note` = joins, with a remark. */
  level: 'good' | 'note' | 'stop';
  title: string;
  /** What it means and what to do. */
  advice: string;
}

/** The result of the check. */
export interface Capability {
  findings: Finding[];
  /** What the device will compute on, or `null` when it cannot join. */
  backend: 'cpu' | 'gpu' | null;
  /** Name of the GPU, where the browser tells it. */
  gpuName: string;
}

/** What the check reads from the browser; a test passes its own. */
export interface Surroundings {
  isSecureContext: boolean;
  origin: string;
  hasWasmSimd: boolean;
  hasWebRtc: boolean;
  gpu: AdapterProbe;
  choice: BackendChoice;
}

/** How far WebGPU got. */
export type AdapterProbe =
  | { kind: 'no-webgpu' }
  | { kind: 'no-adapter' }
  | { kind: 'software'; name: string }
  | { kind: 'hardware'; name: string };

/** Judges the surroundings: secure context → engine → WebGPU → adapter → software adapter. */
export function judge(s: Surroundings): Capability {
  if (!s.isSecureContext) return stopped(insecure(s.origin));
  const secure: Finding = { name: 'secure', level: 'good', title: 'Secure page', advice: '' };
  const missing = missingEngine(s);
  if (missing) return stopped(secure, missing);
  const engine: Finding = { name: 'engine', level: 'good', title: 'Compute engine and peer links', advice: '' };
  const { finding, backend, gpuName } = judgeGpu(s);
  return { findings: [secure, engine, finding], backend, gpuName };
}

/** Asks this browser. */
export async function examineBrowser(choice: BackendChoice): Promise<Capability> {
  return judge({
    isSecureContext,
    origin: location.origin,
    hasWasmSimd: hasWasmSimd(),
    hasWebRtc: typeof RTCPeerConnection === 'function',
    gpu: isSecureContext ? await probeAdapter() : { kind: 'no-webgpu' },
    choice,
  });
}

function stopped(...findings: Finding[]): Capability {
  return { findings, backend: null, gpuName: '' };
}

function insecure(origin: string): Finding {
  const scheme = origin.startsWith('http:') ? `it was opened as ${origin}` : 'its certificate was not accepted';
  return {
    name: 'secure',
    level: 'stop',
    title: 'This page is not secure',
    advice: `Browsers give no computing access to such a page (${scheme}). Open the address that starts with https://, or scan the QR code again, and accept the certificate warning once.`,
  };
}

function missingEngine(s: Surroundings): Finding | null {
  if (!s.hasWasmSimd) {
    return {
      name: 'engine',
      level: 'stop',
      title: 'This browser is too old',
      advice: 'It lacks WebAssembly SIMD, which the training engine needs. Update the browser (Chrome or Edge 91, Firefox 89, Safari 16.4 or newer).',
    };
  }
  if (!s.hasWebRtc) {
    return {
      name: 'engine',
      level: 'stop',
      title: 'Peer links are switched off',
      advice: 'This browser has no WebRTC, so it cannot talk to the other devices. Allow WebRTC in its settings or extensions, or use another browser.',
    };
  }
  return null;
}

function judgeGpu(s: Surroundings): { finding: Finding; backend: 'cpu' | 'gpu' | null; gpuName: string } {
  const note = (title: string, advice: string, backend: 'cpu' | 'gpu' | null = 'cpu'): ReturnType<typeof judgeGpu> => ({
    finding: { name: 'gpu', level: backend === null ? 'stop' : 'note', title, advice },
    backend,
    gpuName: '',
  });
  if (s.choice === 'cpu') return note('Processor, as this link asks', 'The GPU is left alone.');
  // A forced GPU takes the software adapter too: tests run the shaders on it.
  const withoutGpu = s.choice === 'gpu' ? null : 'cpu';
  switch (s.gpu.kind) {
    case 'no-webgpu':
      return note('No WebGPU in this browser', 'The processor computes instead, which is slower. Chrome, Edge, or Safari 26 can use the GPU.', withoutGpu);
    case 'no-adapter':
      return note('The GPU is not available', 'The processor computes instead, which is slower. Turn on hardware acceleration in the browser settings to use the GPU.', withoutGpu);
    case 'software':
      if (s.choice === 'gpu') return note('Software GPU, as this link asks', 'Expect it to be slow.', 'gpu');
      return note('Only a software GPU', 'The processor is faster than an imitated GPU, so it computes. Turn on hardware acceleration in the browser settings if this device has a GPU.');
    case 'hardware':
      return { finding: { name: 'gpu', level: 'good', title: s.gpu.name ? `GPU: ${s.gpu.name}` : 'GPU found', advice: '' }, backend: 'gpu', gpuName: s.gpu.name };
  }
}

async function probeAdapter(): Promise<AdapterProbe> {
  // Typed as always present, but absent from browsers without WebGPU.
  const gpu = navigator.gpu as GPU | undefined;
  if (!gpu) return { kind: 'no-webgpu' };
  try {
    const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
    if (!adapter) return { kind: 'no-adapter' };
    const info = adapter.info;
    const name = info.description || [info.vendor, info.architecture].filter((part) => part !== '').join(' ');
    const legacyFlag = (adapter as GPUAdapter & { isFallbackAdapter?: boolean }).isFallbackAdapter === true;
    const software = info.isFallbackAdapter || legacyFlag || /swiftshader|llvmpipe|lavapipe|software|basic render/i.test(name);
    return { kind: software ? 'software' : 'hardware', name };
  } catch {
    return { kind: 'no-adapter' };
  }
}

/** A module with one SIMD instruction: `(func (result v128) i32.const 0 i8x16.splat)`. */
function hasWasmSimd(): boolean {
  const module = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];
  return typeof WebAssembly === 'object' && WebAssembly.validate(new Uint8Array(module));
}
