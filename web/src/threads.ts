//! With how many threads the processor computes in this browser, and why with no more.

/** Above this the matrices of a small model no longer share out. */
const MOST_THREADS = 8;

/** What the choice depends on. */
export interface Cores {
  /** `navigator.hardwareConcurrency`; absent where the browser does not tell. */
  cores: number | undefined;
  /** `crossOriginIsolated`: only such a page may share memory between workers. */
  isolated: boolean;
  /** Whether the browser has memory to share. */
  shares: boolean;
  /** What the address asks for: `?threads=1`. */
  wanted: number | null;
}

/** Threads to compute with; with one of them `remark` says why, ready to follow the reason for the back end. */
export interface ThreadPlan {
  threads: number;
  remark: string;
}

/** All cores of a device with one or two; elsewhere one is left to the page and to the other tabs. */
export function planThreads({ cores = 1, isolated, shares, wanted }: Cores): ThreadPlan {
  const one = (because: string): ThreadPlan => ({ threads: 1, remark: `one thread, because ${because}` });
  if (wanted === 1) return one('this link asks for it');
  if (!isolated) return one('this page is not cross-origin isolated');
  if (!shares) return one('this browser shares no memory between workers');
  if (cores < 2) return one('this device has one core, or does not tell');
  const free = cores > 2 ? cores - 1 : cores;
  return { threads: Math.min(MOST_THREADS, free, wanted ?? free), remark: '' };
}

/** {@link planThreads} of this browser. */
export function planThreadsHere(wanted: number | null): ThreadPlan {
  return planThreads({ cores: navigator.hardwareConcurrency, isolated: crossOriginIsolated, shares: typeof SharedArrayBuffer === 'function', wanted });
}
