//! Numbers as people read them.

/** Keeps a number and its unit on one line. */
const NBSP = '\u00a0';
const BYTE_UNITS = ['B', 'kB', 'MB', 'GB', 'TB'] as const;

/** `1234567` → `1.2 MB` (decimal units, as file managers show them). */
export function bytes(count: number): string {
  let value = Math.max(0, count);
  let unit = 0;
  while (value >= 999.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)}${NBSP}${BYTE_UNITS[unit]}`;
}

/** Bytes per second. */
export function rate(bytesPerSecond: number): string {
  return `${bytes(bytesPerSecond)}/s`;
}

/** A duration in words short enough for a table: `0.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return 'unknown';
  const value = Math.max(0, seconds);
  if (value > 0 && value < 0.0995) return `${Math.max(1, Math.round(value * 1000))}${NBSP}ms`;
  if (value < 9.95) return `${value.toFixed(1)}${NBSP}s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole}${NBSP}s`;
  if (whole < 3600) return joined(Math.floor(whole / 60), 'min', whole % 60, 's');
  const minutes = Math.round(whole / 60);
  return joined(Math.floor(minutes / 60), 'h', minutes % 60, 'min');
}

/** Time still to go, deliberately coarse: `about 4 min`. */
export function timeLeft(seconds: number): string {
  if (seconds < 5) return 'a few seconds';
  if (seconds < 60) return `about ${Math.round(seconds / 5) * 5}${NBSP}s`;
  if (seconds < 3600) return `about ${Math.round(seconds / 60)}${NBSP}min`;
  return `about ${duration(Math.round(seconds / 300) * 300)}`;
}

/** `3145728` → `3.1 M`. */
export function count(value: number): string {
  if (value >= 999.5e6) return `${(value / 1e9).toFixed(1)}${NBSP}B`;
  if (value >= 999.5e3) return `${(value / 1e6).toFixed(1)}${NBSP}M`;
  if (value >= 9999.5) return `${(value / 1e3).toFixed(1)}${NBSP}k`;
  return Math.round(value).toLocaleString('en');
}

/** `0.854` → `85 %`. */
export function percent(fraction: number): string {
  const value = fraction * 100;
  return `${value > 0 && value < 9.95 && !Number.isInteger(value) ? value.toFixed(1) : Math.round(value)}${NBSP}%`;
}

export function gflops(value: number): string {
  return value >= 1000 ? `${(value / 1000).toFixed(1)}${NBSP}TFLOP/s` : `${value >= 10 ? value.toFixed(0) : value.toFixed(1)}${NBSP}GFLOP/s`;
}

/** A loss: three decimals, or exponent form when tiny. */
export function loss(value: number): string {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3);
}

/** `[0, 3)` → `layers 1–3`: people count from one. */
export function layers(range: readonly [number, number]): string {
  const [start, end] = range;
  return end - start === 1 ? `layer ${end}` : `layers ${start + 1}–${end}`;
}

/** `1 device`, `3 devices`. */
export function plural(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
}

/** Clock time of an event, in the reader's zone. */
export function clock(atMillis: number): string {
  return new Date(atMillis).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false });
}

/** Date and time of a past run. */
export function dateTime(unixSeconds: number): string {
  return new Date(unixSeconds * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
}

function joined(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 ? `${large}${NBSP}${largeUnit}` : `${large}${NBSP}${largeUnit} ${small}${NBSP}${smallUnit}`;
}
