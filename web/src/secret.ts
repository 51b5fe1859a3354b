//! The room secret: found in the page's fragment, turned into the bearer token of the server's API.

const STORAGE_KEY = 'barycenter.fragment';
const SECRET = /^[0-9a-f]{32}$/;

/** What an invitation's fragment holds. */
export interface RoomKey {
  secret: string;
  /** The whole fragment with its `#`, to be handed on to the other pages. */
  fragment: string;
}

/** Reads `#k=…&c=…`; `null` unless the secret is 32 hexadecimal digits. */
export function parseFragment(fragment: string): RoomKey | null {
  const text = fragment.startsWith('#') ? fragment.slice(1) : fragment;
  const secret = text.split('&').find((part) => part.startsWith('k='))?.slice(2) ?? '';
  return SECRET.test(secret) ? { secret, fragment: `#${text}` } : null;
}

/** The key in this page's address, or the one this tab came in with; the address always shows it again. */
export function findRoomKey(): RoomKey | null {
  const fromAddress = parseFragment(location.hash);
  if (fromAddress) {
    remember(fromAddress.fragment);
    return fromAddress;
  }
  // A damaged secret in the address is an error to show, not a reason to use an older one.
  if (location.hash.includes('k=')) return null;
  const kept = parseFragment(recall());
  if (kept) history.replaceState(null, '', `${location.pathname}${location.search}${kept.fragment}`);
  return kept;
}

/** `HMAC-SHA256(secret as text, "barycenter server 1")` as hexadecimal (twin: `RoomSecret::server_token`). */
export async function serverToken(secret: string): Promise<string> {
  const encoder = new TextEncoder();
  const key = await crypto.subtle.importKey('raw', encoder.encode(secret), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  const mac = new Uint8Array(await crypto.subtle.sign('HMAC', key, encoder.encode('barycenter server 1')));
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function remember(fragment: string): void {
  try {
    sessionStorage.setItem(STORAGE_KEY, fragment);
  } catch {
    // Storage may be switched off: then only the address carries the secret.
  }
}

function recall(): string {
  try {
    return sessionStorage.getItem(STORAGE_KEY) ?? '';
  } catch {
    return '';
  }
}
