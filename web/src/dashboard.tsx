//! The dashboard: `render(snapshot)`, and the few things a person can do there.

import 'uplot/dist/uPlot.min.css';
import './styles.css';
import { render } from 'preact';
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { Api, checkVersion, sentenceOf } from './api';
import type { StreamState } from './api';
import { Curves } from './dashboard/curves';
import { Devices } from './dashboard/devices';
import { DownloadAdapter, Epochs, Events, PastRuns } from './dashboard/history';
import { InviteDialog, InvitePanel } from './dashboard/invite';
import { Setup } from './dashboard/setup';
import { Swarm } from './dashboard/swarm';
import { bytes, percent } from './format';
import type { Invite, RunInfo, RunView, Snapshot } from './protocol';
import { findRoomKey } from './secret';
import { epochProgress, headline, isActive } from './story';
import { TrafficMeter } from './traffic';
import type { LinkTraffic } from './traffic';
import { ActionButton, Notice, Refusal, Shell } from './ui';

interface Live {
  snapshot: Snapshot;
  traffic: LinkTraffic[];
}

function Dashboard({ api, fragment }: { api: Api; fragment: string }): JSX.Element {
  const [live, setLive] = useState<Live | null>(null);
  const [stream, setStream] = useState<StreamState>({ kind: 'connecting' });
  const [invite, setInvite] = useState<Invite | null>(null);
  const [runs, setRuns] = useState<RunInfo[]>([]);
  const [problem, setProblem] = useState('');
  const [planningAnother, setPlanningAnother] = useState(false);
  const meter = useRef(new TrafficMeter());

  const show = (error: unknown): void => setProblem(sentenceOf(error));
  useEffect(() => {
    const stop = new AbortController();
    void api.followSnapshots(stop.signal, (snapshot) => setLive({ snapshot, traffic: meter.current.update(snapshot) }), setStream);
    api.invite().then(setInvite, show);
    return () => stop.abort();
  }, [api]);

  const run = live?.snapshot.run ?? null;
  const runKey = run ? `${run.info.run} ${run.info.state}` : '';
  useEffect(() => {
    api.runs().then(setRuns, () => undefined);
  }, [api, runKey]);

  const active = run !== null && isActive(run.info.state);
  useEffect(() => {
    if (active) setPlanningAnother(false);
  }, [active]);

  const showSetup = !active && (run === null || run.info.state === 'stopped' || planningAnother);
  const aside = (
    <>
      {invite && live && !showSetup && <InviteDialog invite={invite} fragment={fragment} />}
      <Connection stream={stream} />
    </>
  );
  if (!live) {
    return (
      <Shell page="dashboard" fragment={fragment} aside={aside}>
        {stream.kind === 'lost' ? <Notice tone="bad">{stream.sentence}</Notice> : <p class="quiet loading">Asking the home server…</p>}
      </Shell>
    );
  }
  const { snapshot, traffic } = live;
  return (
    <Shell page="dashboard" fragment={fragment} moving={run?.info.state === 'running'} aside={aside}>
      {stream.kind === 'lost' && (
        <Notice tone="warning">
          {stream.sentence} {stream.fatal ? '' : 'What you see is the last state; the page keeps trying.'}
        </Notice>
      )}
      {problem && <Notice tone="bad">{problem}</Notice>}
      <Band api={api} snapshot={snapshot} fragment={fragment} planning={showSetup} onPlan={() => setPlanningAnother(true)} onError={show} />
      <div class={snapshot.nodes.length === 0 ? 'duo empty' : 'duo'}>
        <Swarm snapshot={snapshot} traffic={traffic} />
        {run && !showSetup ? (
          <div class="stack">
            <section class="panel" aria-label="Loss">
              <div class="panel-head">
                <h2>Loss</h2>
                <span class="quiet">
                  {run.info.model} on {run.info.dataset}
                </span>
              </div>
              <Curves run={run} />
              {run.cache_bytes > 0 && <p class="quiet">The cache holds {bytes(run.cache_bytes)} across the swarm.</p>}
            </section>
            <Outcome run={run} />
          </div>
        ) : (
          <section class="panel" aria-label="Invitation">
            <div class="panel-head">
              <h2>Invite a device</h2>
            </div>
            {invite && <InvitePanel invite={invite} fragment={fragment} />}
          </section>
        )}
      </div>
      {showSetup && <Setup api={api} nodes={snapshot.nodes} links={snapshot.links.length} onStarted={() => setProblem('')} />}
      <Devices snapshot={snapshot} />
      <div class="duo even">
        {run && !showSetup && <Epochs run={run} />}
        <Events events={snapshot.events} />
      </div>
      <PastRuns api={api} runs={runs.filter((info) => !active || info.run !== run?.info.run)} onError={show} />
    </Shell>
  );
}

/** What happens now, in one sentence, and the buttons that fit it. */
function Band(props: { api: Api; snapshot: Snapshot; fragment: string; planning: boolean; onPlan: () => void; onError: (error: unknown) => void }): JSX.Element {
  const { api, snapshot, onError } = props;
  const { run } = snapshot;
  const { title, detail, tone } = props.planning && snapshot.nodes.length > 0 ? headline({ ...snapshot, run: run?.info.state === 'stopped' ? run : null }) : headline(snapshot);
  const command = (name: 'pause' | 'resume' | 'stop') => async (): Promise<void> => {
    if (run) await api.command(run.info.run, name);
  };
  const state = run?.info.state;
  return (
    <section class={`band ${tone}`} aria-label="State" data-testid="band" data-state={state ?? 'none'}>
      <div class="band-text">
        {/* Read out when it changes; the detail changes with every step. */}
        <h1 aria-live="polite">{title}</h1>
        <p>{detail}</p>
      </div>
      <div class="actions">
        {state === 'running' && (
          <ActionButton run={command('pause')} onError={onError} testId="pause">
            Pause
          </ActionButton>
        )}
        {state === 'paused' && (
          <ActionButton class="primary" run={command('resume')} onError={onError} testId="resume">
            Go on
          </ActionButton>
        )}
        {state !== undefined && isActive(state) && (
          <ActionButton run={command('stop')} onError={onError} testId="stop">
            Stop
          </ActionButton>
        )}
        {run && state === 'done' && !props.planning && (
          <>
            <a class="button primary" href={`/try${props.fragment}`}>
              Try it
            </a>
            <DownloadAdapter api={api} run={run.info.run} onError={onError} />
          </>
        )}
        {(state === 'done' || state === 'failed') && !props.planning && (
          <button type="button" onClick={props.onPlan} data-testid="another">
            Plan another run
          </button>
        )}
      </div>
      {run && isActive(run.info.state) && <EpochTrack run={run} />}
    </section>
  );
}

/** One stretch per epoch, filled as far as it got. */
function EpochTrack({ run }: { run: RunView }): JSX.Element {
  return (
    <ol class="epoch-track" aria-label="Epochs">
      {epochProgress(run).map((done, epoch) => (
        <li key={epoch} class={epoch === 0 ? 'fill' : 'train'} aria-label={`Epoch ${epoch + 1}: ${percent(done)}`}>
          <i style={{ transform: `scaleX(${done})` }} />
        </li>
      ))}
    </ol>
  );
}

/** Before and after, once something of it is known. */
function Outcome({ run }: { run: RunView }): JSX.Element | null {
  const { exact_match_before: before, exact_match_after: after } = run.info;
  const { example } = run;
  if (before == null && !example) return null;
  return (
    <section class="panel outcome" aria-label="Before and after" data-testid="outcome">
      <div class="panel-head">
        <h2>Before and after</h2>
        <span class="quiet">on rows the model never saw</span>
      </div>
      {before != null && (
        <div class="match">
          <MatchBar label="base" value={before} tone="plain" />
          {after == null ? isActive(run.info.state) && <p class="quiet">The tuned model is asked the same questions at the end.</p> : <MatchBar label="tuned" value={after} tone="warm" />}
        </div>
      )}
      {example && (
        <div class="example">
          <p class="ask">{example.prompt}</p>
          <dl>
            <div>
              <dt>wanted</dt>
              <dd>{example.expected}</dd>
            </div>
            <div>
              <dt>base</dt>
              <dd>{example.base || '(nothing)'}</dd>
            </div>
            <div class="tuned">
              <dt>tuned</dt>
              <dd>{example.tuned ?? (isActive(run.info.state) ? 'after the run' : 'was not asked')}</dd>
            </div>
          </dl>
        </div>
      )}
    </section>
  );
}

function MatchBar({ label, value, tone }: { label: string; value: number; tone: string }): JSX.Element {
  return (
    <div class={`match-bar ${tone}`}>
      <span>{label}</span>
      <span class="match-track">
        <i style={{ transform: `scaleX(${value})` }} />
      </span>
      <b>{percent(value)}</b>
    </div>
  );
}

function Connection({ stream }: { stream: StreamState }): JSX.Element {
  const text = stream.kind === 'live' ? 'live' : stream.kind === 'connecting' ? 'connecting' : 'no contact';
  return (
    <span class={`connection ${stream.kind}`} data-testid="connection">
      {text}
    </span>
  );
}

async function main(): Promise<void> {
  const root = document.getElementById('root');
  if (!root) return;
  const key = findRoomKey();
  if (!key) {
    render(
      <Shell page="dashboard" fragment="">
        <Refusal />
      </Shell>,
      root,
    );
    return;
  }
  const failed = (sentence: string): void =>
    render(
      <Shell page="dashboard" fragment={key.fragment}>
        <Notice tone="bad">{sentence}</Notice>
      </Shell>,
      root,
    );
  if (!isSecureContext) return failed('This page is not secure, so it cannot prove its invitation: open the address that starts with https://.');
  const version = await checkVersion();
  if (version) return failed(version.sentence);
  addEventListener('hashchange', () => location.reload());
  render(<Dashboard api={await Api.open(key.secret)} fragment={key.fragment} />, root);
}

void main();
