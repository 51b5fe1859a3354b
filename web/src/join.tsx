//! The join page: what this device can do, one button, and what it does once it is in.

import './styles.css';
import { render } from 'preact';
import type { JSX } from 'preact';
import { useEffect, useReducer, useRef, useState } from 'preact/hooks';
import { Api, ApiFailure, checkVersion, sentence, sentenceOf } from './api';
import { examineBrowser } from './capability';
import type { Capability, Finding } from './capability';
import {
  MAX_NAME_LENGTH, asksForLocalNetwork, cautionAfterCrash, cleanName, defaultName, deviceToken, memoryBudgetBytes, nounOf, noteStayBegan, noteStayEnded, platformOf,
  saveName, savedName, storageQuotaBytes,
} from './device';
import { bytes, duration } from './format';
import { compileNode, keepScreenOn, startStay } from './join/session';
import type { Stay } from './join/session';
import { NEW_STAY, doing, fold, peerText, placeOf, promise, surroundingsOf, testSentence } from './join/state';
import type { StayView, Surroundings } from './join/state';
import type { BackendChoice, NodeEvent } from './node-events';
import type { RoomKey } from './secret';
import { findRoomKey } from './secret';
import { planThreadsHere } from './threads';
import type { ThreadPlan } from './threads';
import { byKind, sumOfKinds } from './traffic';
import { Logo, Meter, Notice, Refusal, Shell } from './ui';

/** What the address asks for: `?auto=1&name=…&backend=cpu&threads=1&relay=1`. */
interface Wishes {
  auto: boolean;
  name: string;
  backend: BackendChoice;
  threads: number | null;
  relay: boolean;
}

/** Before the stay: the check, then ready or not. */
type Door =
  | { kind: 'checking' }
  | { kind: 'closed'; capability: Capability | null; sentence: string; canReload: boolean }
  | { kind: 'open'; capability: Capability };

type Screen = 'on' | 'off' | 'unsupported' | 'unknown';

/** Where the GPU computes, the smaller module is enough. */
const ONE_BESIDE_GPU: ThreadPlan = { threads: 1, remark: 'one thread, because the GPU was to compute' };

type StayAction = NodeEvent | { type: 'reset' };

function Join({ room, wishes }: { room: RoomKey; wishes: Wishes }): JSX.Element {
  const platform = platformOf(navigator.userAgent, navigator.maxTouchPoints);
  const noun = nounOf(platform);
  const [token] = useState(deviceToken);
  const [{ caution, crashed }] = useState(cautionAfterCrash);
  const deviceMemory = (navigator as Navigator & { deviceMemory?: number }).deviceMemory;
  const budget = memoryBudgetBytes(platform, deviceMemory, caution);

  const [name, setName] = useState(() => cleanName(wishes.name) || savedName() || defaultName(platform, token));
  const [door, setDoor] = useState<Door>({ kind: 'checking' });
  const [stayView, dispatch] = useReducer((view: StayView, action: StayAction) => (action.type === 'reset' ? NEW_STAY : fold(view, action)), NEW_STAY);
  const [inside, setInside] = useState(false);
  const [fetched, setFetched] = useState<{ fraction: number | null } | null>(null);
  const [screen, setScreen] = useState<Screen>('unknown');
  const stay = useRef<Stay | null>(null);
  const plan = useRef<ThreadPlan>(ONE_BESIDE_GPU);
  const hidden = useHidden();

  useEffect(() => {
    void openDoor(room, wishes.backend).then((result) => {
      setDoor(result);
      // Fetched while the person reads; a failure shows when they join.
      if (result.kind === 'open') plan.current = result.capability.backend === 'gpu' ? ONE_BESIDE_GPU : planThreadsHere(wishes.threads);
      if (result.kind === 'open') compileNode(plan.current, () => undefined).catch(() => undefined);
      if (result.kind === 'open' && wishes.auto) void enter();
    });
  }, []);

  useEffect(() => (inside && stayView.stage !== 'over' ? keepScreenOn(setScreen) : undefined), [inside, stayView.stage === 'over']);
  useEffect(() => {
    if (stayView.stage === 'over') noteStayEnded();
    document.body.dataset['state'] = inside ? stayView.stage : door.kind;
  }, [inside, stayView.stage, door.kind]);
  useEffect(() => {
    // Closing the page is a normal way to leave: the server notices by the end of the stream.
    const gone = (): void => {
      noteStayEnded();
      stay.current?.leaveAtOnce();
    };
    addEventListener('pagehide', gone);
    return () => removeEventListener('pagehide', gone);
  }, []);

  const enter = async (): Promise<void> => {
    const chosen = cleanName(name) || defaultName(platform, token);
    setName(chosen);
    if (!wishes.auto) saveName(chosen);
    dispatch({ type: 'reset' });
    setInside(true);
    noteStayBegan();
    try {
      setFetched({ fraction: null });
      const node = await compileNode(plan.current, (fraction) => setFetched({ fraction }));
      setFetched(null);
      const storage = await storageQuotaBytes();
      stay.current = startStay(
        node,
        { secret: room.secret, name: chosen, backend: wishes.backend, deviceToken: token, storageQuotaBytes: storage, memoryBudgetBytes: budget, relay: wishes.relay },
        dispatch,
      );
    } catch (error) {
      setFetched(null);
      dispatch({ type: 'error', fatal: true, message: sentenceOf(error) });
    }
  };
  const leave = (): void => {
    if (stay.current) stay.current.leave();
    else setInside(false);
  };

  if (!inside) {
    return (
      <div class="join">
        {crashed && (
          <Notice tone="warning">The browser ended this page last time, probably for want of memory. It now offers less: {bytes(budget)}.</Notice>
        )}
        {door.kind === 'checking' && <p class="quiet loading">Looking at what this {noun} can do…</p>}
        {door.kind === 'closed' && (
          <>
            <h1>This {noun} cannot join yet</h1>
            {door.sentence && <Notice tone="bad">{door.sentence}</Notice>}
            {door.capability && <Findings findings={door.capability.findings} />}
            <button type="button" class="primary large" onClick={() => location.reload()}>
              {door.canReload ? 'Reload' : 'Check again'}
            </button>
          </>
        )}
        {door.kind === 'open' && (
          <form
            class="join-form"
            onSubmit={(event) => {
              event.preventDefault();
              void enter();
            }}
          >
            <h1>Lend a hand</h1>
            <p class="lead" data-testid="promise">
              {promise(noun, door.capability.backend ?? 'cpu', budget)}
            </p>
            <label class="field">
              <span>Name of this {noun}</span>
              <input value={name} maxLength={MAX_NAME_LENGTH} autocomplete="off" data-testid="name" onInput={(event) => setName(event.currentTarget.value)} />
            </label>
            <Findings findings={door.capability.findings} />
            {asksForLocalNetwork(platform) && (
              <p class="quiet">
                Your {noun} may ask whether this page can find devices on the local network. Choose <b>Allow</b>: that is how it reaches the others.
              </p>
            )}
            <button class="primary large" type="submit" data-testid="join">
              Join
            </button>
            <p class="quiet">Keep the page open and the {noun} plugged in. You can leave at any time.</p>
          </form>
        )}
      </div>
    );
  }
  return <Inside room={room} view={stayView} name={name} noun={noun} fetched={fetched} hidden={hidden} screen={screen} onLeave={leave} onAgain={() => void enter()} />;
}

function Inside(props: {
  room: RoomKey;
  view: StayView;
  name: string;
  noun: string;
  fetched: { fraction: number | null } | null;
  hidden: boolean;
  screen: Screen;
  onLeave: () => void;
  onAgain: () => void;
}): JSX.Element {
  const { view, name, noun, fetched, screen } = props;
  const around = useSurroundings(props.room, view);
  if (view.stage === 'over') {
    return (
      <div class="join" data-testid="over">
        <h1>{view.end?.bad ? 'This device dropped out' : view.end?.sentence === 'You left.' ? 'You left the swarm' : 'This device is out of the swarm'}</h1>
        {view.end && (view.end.bad ? <Notice tone="bad">{view.end.sentence}</Notice> : view.end.sentence !== 'You left.' && <p class="lead">{view.end.sentence}</p>)}
        {view.counters && view.counters.compute_seconds >= 0.1 && (
          <p class="quiet">
            {name} computed for {duration(view.counters.compute_seconds)}. What it learnt stays with the others.
          </p>
        )}
        <button type="button" class="primary large" onClick={props.onAgain}>
          Join again
        </button>
      </div>
    );
  }
  const progress = fetched ? { text: 'Fetching the compute engine', fraction: fetched.fraction } : view.progress;
  const place = placeOf(view);
  return (
    <div class="join inside" data-testid="inside">
      <Logo moving={view.stage === 'in' && view.activity?.phase != null} />
      <div class="inside-head">
        <span class="inside-name">{name}</span>
        <span class={`connection ${view.stage === 'in' ? 'live' : view.stage === 'reconnecting' ? 'lost' : 'connecting'}`}>
          {view.stage === 'in' ? 'in the swarm' : view.stage === 'reconnecting' ? 'no contact' : 'joining'}
        </span>
      </div>
      <h1 aria-live="polite" data-testid="doing">{doing(view, around)}</h1>
      {place && <p class="lead">{place}</p>}
      {progress && (
        <div class="progress" data-testid="progress">
          <span>{progress.text}</span>
          <Meter fraction={progress.fraction} label={progress.text} />
        </div>
      )}
      {view.remark && <Notice tone="warning">{view.remark}</Notice>}
      {props.hidden && <Notice tone="warning">This page was in the background, where browsers slow it down. Keep it in front while the swarm works.</Notice>}
      {view.checks.filter((check) => !check.ok).map((check) => (
        <Notice key={check.name} tone="warning">
          {check.text}
        </Notice>
      ))}
      {view.counters && <Counts view={view} />}
      {view.stage === 'in' && <Peers view={view} names={around.names} />}
      {view.selfTest && <p class="quiet">{testSentence(view.selfTest)} {sentence(view.selfTest.backend.reason)}</p>}
      {screen === 'on' && <p class="quiet">The screen stays on while this page is open.</p>}
      {(screen === 'off' || screen === 'unsupported') && <p class="quiet">This browser cannot keep the screen on: set the {noun} to stay awake.</p>}
      {view.leaving && <Notice tone="info">The others take over what only this {noun} holds; then it leaves by itself, in a minute at most.</Notice>}
      <button type="button" class="large" onClick={props.onLeave} data-testid={view.leaving ? 'leave-now' : 'leave'}>
        {view.leaving ? 'Leave now' : 'Leave'}
      </button>
    </div>
  );
}

function Counts({ view }: { view: StayView }): JSX.Element | null {
  const { counters } = view;
  if (!counters) return null;
  const sent = counters.links.reduce((sum, link) => sum + sumOfKinds(byKind(link)), 0);
  const items: [string, string][] = [
    ['computed', duration(counters.compute_seconds)],
    ['waited', duration(counters.wait_seconds)],
    ['memory', bytes(counters.memory_bytes)],
    ['cache here', bytes(counters.cache_bytes)],
    ['sent to peers', bytes(sent)],
    ['weights fetched', bytes(counters.weights_downloaded_bytes)],
  ];
  return (
    <dl class="counts" data-testid="counters">
      {items.map(([label, value]) => (
        <div key={label}>
          <dt>{label}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function Peers({ view, names }: { view: StayView; names: ReadonlyMap<number, string> }): JSX.Element {
  const linked = view.peers;
  if (linked.length === 0) return <p class="quiet">No other device is linked yet.</p>;
  return (
    <ul class="peers" data-testid="peers">
      {linked.map((peer) => (
        <li key={peer.peer}>
          <b>{names.get(peer.peer) ?? `Device ${peer.peer}`}</b> <span class="quiet">{peerText(peer)}</span>
        </li>
      ))}
    </ul>
  );
}

/** What the mark before a finding says to those who do not see it. */
const LEVEL_WORDS: Record<Finding['level'], string> = { good: 'All right: ', note: 'Note: ', stop: 'Cannot join: ' };

function Findings({ findings }: { findings: Finding[] }): JSX.Element {
  return (
    <ul class="findings" data-testid="findings">
      {findings.map((finding) => (
        <li key={finding.name} class={finding.level}>
          <span class="unseen">{LEVEL_WORDS[finding.level]}</span>
          <b>{finding.title}</b>
          {finding.advice && <p>{finding.advice}</p>}
        </li>
      ))}
    </ul>
  );
}

/** Secure context and hardware first, for without them the server cannot even be asked; then the invitation itself. */
async function openDoor(room: RoomKey, backend: BackendChoice): Promise<Door> {
  const capability = await examineBrowser(backend);
  if (capability.backend === null) return { kind: 'closed', capability, sentence: '', canReload: false };
  const version = await checkVersion();
  if (version) return { kind: 'closed', capability: null, sentence: version.sentence, canReload: version.reload };
  try {
    await (await Api.open(room.secret)).models();
  } catch (error) {
    const refused = error instanceof ApiFailure && (error.status === 401 || error.status === 403);
    return { kind: 'closed', capability: null, sentence: sentenceOf(error), canReload: !refused };
  }
  return { kind: 'open', capability };
}

/** How often the join page looks at the whole swarm: only for names and for whether a run goes on without it. */
const LOOK_MILLIS = 4000;

/** What goes on around this device; asked for rarely and only while the page is looked at, to leave the device its time. */
function useSurroundings(room: RoomKey, view: StayView): Surroundings {
  const [around, setAround] = useState<Surroundings>(() => surroundingsOf(null, null));
  const inside = view.stage === 'in';
  const known = view.peers.every((peer) => around.names.has(peer.peer));
  useEffect(() => {
    if (!inside) return undefined;
    let current = true;
    const look = async (): Promise<void> => {
      if (document.visibilityState === 'hidden') return;
      try {
        const snapshot = await (await Api.open(room.secret)).snapshot();
        if (current) setAround(surroundingsOf(snapshot, view.node));
      } catch {
        // The node itself reports a lost server.
      }
    };
    void look();
    const timer = setInterval(() => void look(), LOOK_MILLIS);
    return () => {
      current = false;
      clearInterval(timer);
    };
  }, [inside, view.node, known]);
  return around;
}

/** Whether the page was hidden within the last ten seconds: the warning must be readable after coming back. */
function useHidden(): boolean {
  const [hidden, setHidden] = useState(false);
  useEffect(() => {
    let timer = 0;
    const change = (): void => {
      clearTimeout(timer);
      if (document.visibilityState === 'hidden') setHidden(true);
      else timer = window.setTimeout(() => setHidden(false), 10_000);
    };
    document.addEventListener('visibilitychange', change);
    return () => {
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', change);
    };
  }, []);
  return hidden;
}

function wishesOf(search: string): Wishes {
  const query = new URLSearchParams(search);
  const backend = query.get('backend');
  const threads = Number.parseInt(query.get('threads') ?? '', 10);
  return {
    auto: query.get('auto') === '1',
    name: query.get('name') ?? '',
    backend: backend === 'cpu' || backend === 'gpu' ? backend : 'auto',
    threads: threads >= 1 ? threads : null,
    relay: query.get('relay') === '1',
  };
}

function main(): void {
  const root = document.getElementById('root');
  if (!root) return;
  const room = findRoomKey();
  render(
    <Shell page="join" fragment={room?.fragment ?? ''}>
      {room ? <Join room={room} wishes={wishesOf(location.search)} /> : <Refusal />}
    </Shell>,
    root,
  );
  // A page taken out of the browser's back/forward store has a dead Worker.
  addEventListener('pageshow', (event) => event.persisted && location.reload());
  addEventListener('hashchange', () => location.reload());
}

main();
