//! The code to scan, in the page and as a dialog.

import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { nounOf, platformOf } from '../device';
import type { Invite } from '../protocol';

export function InvitePanel({ invite, fragment }: { invite: Invite; fragment: string }): JSX.Element {
  return (
    <div class="invite" data-testid="invite">
      <QrCode svg={invite.svg} />
      <div class="invite-text">
        <p>Scan this with the camera of a phone or tablet in the same Wi-Fi.</p>
        <p class="quiet">
          The first time, the browser warns about the certificate, which the home server made itself. Choose “Advanced”, then “Proceed”; on an iPhone or
          iPad “Show Details”, then “visit this website”.
        </p>
        <CopyField text={invite.url} />
        <p class="quiet">
          Or let <a href={`/join${fragment}`} target="_blank" rel="noopener">this {nounOf(platformOf(navigator.userAgent, navigator.maxTouchPoints))} join</a> in a tab of its own.
        </p>
      </div>
    </div>
  );
}

/** A button in the header that shows the code at any time. */
export function InviteDialog({ invite, fragment }: { invite: Invite; fragment: string }): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  return (
    <>
      <button type="button" class="small" onClick={() => dialog.current?.showModal()}>
        Invite a device
      </button>
      <dialog ref={dialog} aria-label="Invite a device" onClick={(event) => event.target === dialog.current && dialog.current?.close()}>
        <div class="dialog-body">
          <div class="panel-head">
            <h2>Invite a device</h2>
            <form method="dialog">
              <button class="small">Close</button>
            </form>
          </div>
          <InvitePanel invite={invite} fragment={fragment} />
        </div>
      </dialog>
    </>
  );
}

/** The server's SVG, parsed as a picture: `img` with a data address would need a wider content policy. */
function QrCode({ svg }: { svg: string }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const root = new DOMParser().parseFromString(svg, 'image/svg+xml').documentElement;
    if (root.nodeName !== 'svg' || !box.current) return;
    // Without a view box the code would be cut off instead of scaled.
    const [width, height] = [root.getAttribute('width'), root.getAttribute('height')];
    if (!root.hasAttribute('viewBox') && width && height) root.setAttribute('viewBox', `0 0 ${Number.parseFloat(width)} ${Number.parseFloat(height)}`);
    root.removeAttribute('width');
    root.removeAttribute('height');
    box.current.replaceChildren(document.importNode(root, true));
  }, [svg]);
  return <div ref={box} class="qr" role="img" aria-label="QR code of the join address" />;
}

function CopyField({ text }: { text: string }): JSX.Element {
  const [copied, setCopied] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  const copy = (): void => {
    field.current?.select();
    navigator.clipboard.writeText(text).then(
      () => {
        setCopied(true);
        setTimeout(() => setCopied(false), 2000);
      },
      // Refused: the address stays selected for Ctrl+C.
      () => setCopied(false),
    );
  };
  return (
    <div class="copy">
      <input ref={field} readOnly value={text} aria-label="Join address" data-testid="invite-url" onFocus={(event) => event.currentTarget.select()} />
      <button type="button" class="small" onClick={copy}>
        {copied ? 'Copied' : 'Copy'}
      </button>
    </div>
  );
}
