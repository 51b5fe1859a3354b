//! Pieces that all pages share.

import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';

type Page = 'dashboard' | 'join' | 'try';

/** Two bodies about their common point; they move while something runs. */
export function Logo({ moving = false }: { moving?: boolean }): JSX.Element {
  return (
    <svg class={moving ? 'logo moving' : 'logo'} viewBox="0 0 40 40" aria-hidden="true">
      <path class="logo-point" d="M20 17.4v5.2M17.4 20h5.2" />
      <g class="logo-pair">
        <circle class="logo-orbit" cx="20" cy="20" r="16" />
        <circle class="logo-orbit" cx="20" cy="20" r="8" />
        <circle class="logo-large" cx="12" cy="20" r="5.4" />
        <circle class="logo-small" cx="36" cy="20" r="3.2" />
      </g>
    </svg>
  );
}

/** Header with the way to the other pages, and the page's content. */
export function Shell(props: { page: Page; fragment: string; moving?: boolean; aside?: ComponentChildren; children: ComponentChildren }): JSX.Element {
  const { page, fragment } = props;
  const link = (target: Page, href: string, text: string): JSX.Element => (
    <a href={`${href}${fragment}`} aria-current={page === target ? 'page' : undefined}>
      {text}
    </a>
  );
  return (
    <>
      <header class="top">
        <a class="brand" href={`/${fragment}`}>
          <Logo moving={props.moving ?? false} />
          <span>barycenter</span>
        </a>
        <nav aria-label="Pages">
          {link('dashboard', '/', 'Dashboard')}
          {link('try', '/try', 'Try it')}
          {link('join', '/join', 'Join')}
        </nav>
        {props.aside && <div class="top-aside">{props.aside}</div>}
      </header>
      <main>{props.children}</main>
    </>
  );
}

/** A remark that must not be missed. */
export function Notice({ tone, children }: { tone: 'info' | 'warning' | 'bad' | 'good'; children: ComponentChildren }): JSX.Element {
  return (
    <div class={`notice ${tone}`} role={tone === 'bad' ? 'alert' : 'status'}>
      {children}
    </div>
  );
}

/** What a page without the secret shows. */
export function Refusal(): JSX.Element {
  return (
    <section class="refusal" data-testid="refusal">
      <Logo />
      <h1>This address has no invitation</h1>
      <p>
        The address of a swarm ends with its key, <code>#k=</code> and 32 letters and digits. Here it is missing or damaged. Scan the QR code on the
        dashboard or in the terminal again, or copy the whole address from there.
      </p>
    </section>
  );
}

/** A bar that fills; without a fraction it shows that something goes on. */
export function Meter({ fraction, label, tone = 'cool' }: { fraction: number | null; label: string; tone?: 'cool' | 'warm' | 'plain' }): JSX.Element {
  const known = fraction !== null;
  const percent = known ? Math.round(Math.min(1, Math.max(0, fraction)) * 100) : undefined;
  return (
    <div class={`meter ${tone}${known ? '' : ' unknown'}`} role="progressbar" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={percent}>
      <i style={known ? { transform: `scaleX(${(percent ?? 0) / 100})` } : {}} />
    </div>
  );
}

/** A button that shows that its work goes on, and a sentence when it failed. */
export function ActionButton(props: {
  class?: string;
  testId?: string;
  disabled?: boolean;
  run: () => Promise<void>;
  onError: (error: unknown) => void;
  children: ComponentChildren;
}): JSX.Element {
  const [busy, setBusy] = useState(false);
  const click = (): void => {
    setBusy(true);
    props
      .run()
      .catch(props.onError)
      .finally(() => setBusy(false));
  };
  return (
    <button type="button" class={props.class ?? ''} data-testid={props.testId} disabled={busy || props.disabled === true} aria-busy={busy} onClick={click}>
      {props.children}
    </button>
  );
}

/** Whether the reader prefers dark; curves are drawn anew when it changes. */
export function useDark(): boolean {
  const [dark, setDark] = useState(() => matchMedia('(prefers-color-scheme: dark)').matches);
  useEffect(() => {
    const query = matchMedia('(prefers-color-scheme: dark)');
    const change = (): void => setDark(query.matches);
    query.addEventListener('change', change);
    return () => query.removeEventListener('change', change);
  }, []);
  return dark;
}

/** Width of an element in CSS pixels, kept up to date. */
export function useWidth<T extends Element>(): [(element: T | null) => void, number] {
  const [element, setElement] = useState<T | null>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    if (!element) return undefined;
    const observer = new ResizeObserver(([entry]) => setWidth(Math.round(entry?.contentRect.width ?? 0)));
    observer.observe(element);
    return () => observer.disconnect();
  }, [element]);
  return [setElement, width];
}

/** Saves a blob under a name, as a link would. */
export function saveBlob(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
