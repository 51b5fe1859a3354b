//! Finished epochs, the event log, and past runs.

import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import type { Api } from '../api';
import { clock, dateTime, duration, loss as lossText, percent } from '../format';
import type { EventView, RunInfo, RunView } from '../protocol';
import { ActionButton, saveBlob } from '../ui';
import { Curves } from './curves';

export function Epochs({ run }: { run: RunView }): JSX.Element | null {
  if (run.epochs.length === 0) return null;
  return (
    <section class="panel" aria-label="Epochs" data-testid="epochs">
      <div class="panel-head">
        <h2>Epochs</h2>
        <span class="quiet">“took” is by the clock, the rest adds up all devices</span>
      </div>
      <EpochTable run={run} />
    </section>
  );
}

function EpochTable({ run }: { run: RunView }): JSX.Element {
  const fill = run.epochs.find((epoch) => epoch.phase === 'fill');
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>Epoch</th>
            <th class="num">took</th>
            <th class="num">loss</th>
            <th class="num">frozen layers</th>
            <th class="num">adapter</th>
            <th class="num">waiting</th>
          </tr>
        </thead>
        <tbody>
          {run.epochs.map((epoch) => (
            <tr key={`${epoch.epoch}-${epoch.phase}`}>
              <th scope="row">
                {epoch.epoch + 1} <span class="quiet">{phaseName(epoch.phase)}</span>
              </th>
              <td class="num">
                {duration(epoch.seconds)}
                {fill && epoch !== fill && epoch.seconds > 0 && fill.seconds / epoch.seconds >= 1.15 && (
                  <span class="gain"> {(fill.seconds / epoch.seconds).toFixed(1)}× faster</span>
                )}
              </td>
              <td class="num">{lossText(epoch.loss)}</td>
              <td class="num">{epoch.backbone_seconds === 0 ? 'none' : duration(epoch.backbone_seconds)}</td>
              <td class="num">{duration(epoch.side_seconds)}</td>
              <td class="num">{duration(epoch.wait_seconds)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function Events({ events }: { events: EventView[] }): JSX.Element {
  return (
    <section class="panel" aria-label="Events">
      <div class="panel-head">
        <h2>Events</h2>
      </div>
      {events.length === 0 ? (
        <p class="quiet">Nothing has happened yet.</p>
      ) : (
        <ol class="events" data-testid="events" tabIndex={0}>
          {[...events].reverse().map((event, i) => (
            <li key={`${event.at_millis}-${events.length - i}`} class={event.level}>
              <time>{clock(event.at_millis)}</time>
              <span>
                {(event.level === 'bad' || event.level === 'warning') && <span class="unseen">{event.level === 'bad' ? 'Trouble: ' : 'Note: '}</span>}
                {event.text}
              </span>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}

type Opened = { run: number; view: RunView | null };

export function PastRuns({ api, runs, onError }: { api: Api; runs: RunInfo[]; onError: (error: unknown) => void }): JSX.Element | null {
  const [opened, setOpened] = useState<Opened | null>(null);
  if (runs.length === 0) return null;
  const open = (info: RunInfo): void => {
    if (opened?.run === info.run) return setOpened(null);
    setOpened({ run: info.run, view: null });
    api.runView(info.run).then(
      (view) => setOpened((now) => (now?.run === info.run ? { run: info.run, view } : now)),
      (error: unknown) => {
        setOpened(null);
        onError(error);
      },
    );
  };
  return (
    <section class="panel" aria-label="Past runs" data-testid="past-runs">
      <div class="panel-head">
        <h2>Past runs</h2>
      </div>
      <ul class="runs">
        {[...runs].sort((a, b) => b.run - a.run).map((info) => (
          <li key={info.run}>
            <button type="button" class="run-row" aria-expanded={opened?.run === info.run} onClick={() => open(info)}>
              <b>Run {info.run}</b>
              <span class="run-what">
                {info.model} on {info.dataset}
              </span>
              <span class="run-when quiet">{dateTime(info.started_at)}</span>
              <span class={`state ${info.state}`}>{runResult(info)}</span>
            </button>
            {opened?.run === info.run && (
              <div class="run-open">
                {opened.view === null ? (
                  <p class="quiet">Loading its curves…</p>
                ) : (
                  <>
                    {info.note && <p>{info.note}</p>}
                    <Curves run={opened.view} />
                    {opened.view.epochs.length > 0 && <EpochTable run={opened.view} />}
                    <DownloadAdapter api={api} run={info.run} onError={onError} />
                  </>
                )}
              </div>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** Saves both files of the adapter; the server answers with a sentence while there is no checkpoint. */
export function DownloadAdapter({ api, run, onError }: { api: Api; run: number; onError: (error: unknown) => void }): JSX.Element {
  const save = async (): Promise<void> => {
    const weights = await api.adapterFile(run, 'adapter_model.safetensors');
    const config = await api.adapterFile(run, 'adapter_config.json');
    saveBlob(weights, 'adapter_model.safetensors');
    saveBlob(config, 'adapter_config.json');
  };
  return (
    <ActionButton run={save} onError={onError} testId="download-adapter">
      Download adapter
    </ActionButton>
  );
}

function runResult(info: RunInfo): string {
  if (info.state === 'done' && info.exact_match_before != null && info.exact_match_after != null) {
    return `${percent(info.exact_match_before)} → ${percent(info.exact_match_after)} exact`;
  }
  if (info.state === 'done' && info.held_out_loss != null) return `held-out loss ${lossText(info.held_out_loss)}`;
  return info.state;
}

function phaseName(phase: string): string {
  return phase === 'fill' ? 'fills the cache' : phase === 'train' ? 'from the cache' : phase;
}
