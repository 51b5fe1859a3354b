//! What a device remembers of itself, and how much of itself it offers.

/** The longest name the server takes, characters. */
export const MAX_NAME_LENGTH = 40;

const NAME_KEY = 'barycenter.name';
const TOKEN_KEY = 'barycenter.device-token';
const STAY_KEY = 'barycenter.stay';
const CAUTION_KEY = 'barycenter.caution';
const MEBIBYTE = 1024 * 1024;

/** Kinds of platform that differ in names, prompts or limits. */
export type Platform = 'iphone' | 'ipad' | 'mac' | 'android' | 'android-tablet' | 'chromebook' | 'windows' | 'linux' | 'other';

/** Platform from what the browser says of itself; an iPad calls itself a Mac but has touch points. */
export function platformOf(userAgent: string, touchPoints: number): Platform {
  if (/iPhone|iPod/.test(userAgent)) return 'iphone';
  if (/iPad/.test(userAgent) || (/Macintosh/.test(userAgent) && touchPoints > 1)) return 'ipad';
  if (/Macintosh/.test(userAgent)) return 'mac';
  if (/Android/.test(userAgent)) return /Mobile/.test(userAgent) ? 'android' : 'android-tablet';
  if (/CrOS/.test(userAgent)) return 'chromebook';
  if (/Windows/.test(userAgent)) return 'windows';
  if (/Linux|X11/.test(userAgent)) return 'linux';
  return 'other';
}

const PLATFORM_NAMES: Record<Platform, string> = {
  iphone: 'iPhone',
  ipad: 'iPad',
  mac: 'Mac',
  android: 'Android phone',
  'android-tablet': 'Android tablet',
  chromebook: 'Chromebook',
  windows: 'Windows PC',
  linux: 'Linux PC',
  other: 'Browser',
};

/** What to call the device as a thing in a sentence: "this phone". */
export function nounOf(platform: Platform): string {
  if (platform === 'iphone' || platform === 'android') return 'phone';
  if (platform === 'ipad' || platform === 'android-tablet') return 'tablet';
  return 'computer';
}

/** Whether the system asks before a page may talk to other devices. */
export function asksForLocalNetwork(platform: Platform): boolean {
  return platform === 'iphone' || platform === 'ipad' || platform === 'mac';
}

/** A name nobody has to type: the platform and two digits of the device's token, so that two iPhones differ. */
export function defaultName(platform: Platform, deviceToken: string): string {
  const digits = Number.parseInt(deviceToken.slice(0, 4), 16) % 90;
  return `${PLATFORM_NAMES[platform]} ${Number.isNaN(digits) ? 10 : digits + 10}`;
}

/** A name the server takes: no control characters, trimmed, at most {@link MAX_NAME_LENGTH} characters. */
export function cleanName(name: string): string {
  const visible = name.replace(/\p{Cc}/gu, ' ').replace(/\s+/g, ' ').trim();
  return Array.from(visible).slice(0, MAX_NAME_LENGTH).join('').trim();
}

/**
 * Memory to offer, bytes.
 *
 * iOS ends a tab without a word at about 1.5 GB, other phones are not generous either; `deviceMemoryGib` is what the
 * browser tells (Chromium only, rounded, at most 8). Each time the browser ended the page, `caution` halves the offer.
 */
export function memoryBudgetBytes(platform: Platform, deviceMemoryGib: number | undefined, caution: number): number {
  const base = ((): number => {
    switch (platform) {
      case 'iphone':
      case 'ipad':
        return 450;
      case 'android':
      case 'android-tablet':
        return Math.min(1024, 128 * (deviceMemoryGib ?? 4));
      default:
        // A wasm module addresses 4 GiB at most; half of that leaves room for the page and its copies.
        return Math.min(2048, 256 * (deviceMemoryGib ?? 8));
    }
  })();
  return Math.max(64, base / 2 ** caution) * MEBIBYTE;
}

/** Cache storage to offer: half of what the browser still grants, at most 8 GB; 0 when it tells nothing. */
export async function storageQuotaBytes(): Promise<number> {
  try {
    // Asks the browser not to clear our files; a refusal only means that they may go when space is short.
    void navigator.storage.persist().catch(() => false);
    const { quota = 0, usage = 0 } = await navigator.storage.estimate();
    return Math.floor(Math.min(8e9, Math.max(0, quota - usage) / 2));
  } catch {
    return 0;
  }
}

/** The device's own token, made at the first visit: a page that reloads takes its old place. */
export function deviceToken(): string {
  const kept = read(sessionStorageOrNull(), TOKEN_KEY);
  if (kept && /^[0-9a-f]{32}$/.test(kept)) return kept;
  const token = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
  write(sessionStorageOrNull(), TOKEN_KEY, token);
  return token;
}

export function savedName(): string {
  return cleanName(read(localStorageOrNull(), NAME_KEY) ?? '');
}

export function saveName(name: string): void {
  write(localStorageOrNull(), NAME_KEY, name);
}

/** Notes that a stay began; a page that finds the note later was ended by the browser, not by a person. */
export function noteStayBegan(): void {
  write(sessionStorageOrNull(), STAY_KEY, '1');
}

export function noteStayEnded(): void {
  sessionStorageOrNull()?.removeItem(STAY_KEY);
}

/** How often the browser ended this page lately (0 … 3); counts a stay that was never noted as ended. */
export function cautionAfterCrash(): { caution: number; crashed: boolean } {
  const storage = sessionStorageOrNull();
  const before = Math.min(3, Number.parseInt(read(storage, CAUTION_KEY) ?? '0', 10) || 0);
  if (read(storage, STAY_KEY) !== '1') return { caution: before, crashed: false };
  noteStayEnded();
  const caution = Math.min(3, before + 1);
  write(storage, CAUTION_KEY, String(caution));
  return { caution, crashed: true };
}

// The token is per tab on purpose (two tabs of one browser are two nodes); `sessionStorage` survives reloads and crashes.
function sessionStorageOrNull(): Storage | null {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

function localStorageOrNull(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function read(storage: Storage | null, key: string): string | null {
  return storage?.getItem(key) ?? null;
}

function write(storage: Storage | null, key: string, value: string): void {
  try {
    storage?.setItem(key, value);
  } catch {
    // Private windows may refuse: the value then lasts as long as the page.
  }
}
