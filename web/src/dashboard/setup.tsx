//! From a model and a data file to a plan that a person has seen, to a started run.

import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { sentence, sentenceOf } from '../api';
import type { Api } from '../api';
import { bytes, count, duration, plural } from '../format';
import type { DatasetInfo, DatasetPreview, ModelInfo, NodeView, PlanPreview, RunRequest } from '../protocol';
import { change, comparison, modelFacts, plannedDevices, plannedLinks, predictedPhases } from '../story';
import { ActionButton, Notice } from '../ui';
import { SETTINGS, WEIGHT_FORMATS, requestOf } from './settings';
import type { SettingTexts } from './settings';

/** The plan is asked for once typing and joining have been quiet for so long. */
const PLAN_DELAY_MILLIS = 350;

type PlanState = { kind: 'none' } | { kind: 'asking' } | { kind: 'ready'; preview: PlanPreview; request: RunRequest } | { kind: 'refused'; sentence: string };

export function Setup({ api, nodes, links, onStarted }: { api: Api; nodes: NodeView[]; links: number; onStarted: () => void }): JSX.Element {
  const [models, setModels] = useState<ModelInfo[] | null>(null);
  const [datasets, setDatasets] = useState<DatasetInfo[] | null>(null);
  const [model, setModel] = useState('');
  const [dataset, setDataset] = useState('');
  const [texts, setTexts] = useState<SettingTexts>({});
  const [plan, setPlan] = useState<PlanState>({ kind: 'none' });
  const [dropped, setDropped] = useState<ReadonlySet<number>>(new Set());
  /** The newest plan with every device, to compare with. */
  const [withAll, setWithAll] = useState<{ key: string; preview: PlanPreview } | null>(null);
  const [problem, setProblem] = useState('');

  const show = (error: unknown): void => setProblem(sentenceOf(error));
  useEffect(() => {
    api.models().then((list) => {
      setModels(list);
      setModel((chosen) => chosen || (list.find((m) => !m.problem)?.id ?? ''));
    }, show);
    api.datasets().then((list) => {
      setDatasets(list);
      setDataset((chosen) => chosen || (list[0]?.id ?? ''));
    }, show);
  }, [api]);

  const settings = requestOf(model, dataset, texts);
  // Who has gone meanwhile need not be left out.
  const without = nodes.map((node) => node.node).filter((node) => dropped.has(node));
  const parsed = 'problem' in settings || without.length === 0 ? settings : { request: { ...settings.request, without } };
  const requestKey = JSON.stringify(parsed);
  // A device is planned with once its links are up, so the plan is asked for again then.
  const swarmKey = `${links}:` + nodes.map((node) => `${node.node}:${Math.round(node.gflops)}`).join();
  const compareKey = JSON.stringify(settings) + swarmKey;
  useEffect(() => {
    if (!model || !dataset || nodes.length === 0 || 'problem' in parsed) {
      setPlan({ kind: 'none' });
      return undefined;
    }
    let current = true;
    setPlan((before) => (before.kind === 'ready' ? before : { kind: 'asking' }));
    const timer = setTimeout(() => {
      api.plan(parsed.request).then(
        (preview) => {
          if (!current) return;
          setPlan({ kind: 'ready', preview, request: parsed.request });
          if (without.length === 0) setWithAll({ key: compareKey, preview });
        },
        (error: unknown) => current && setPlan({ kind: 'refused', sentence: sentenceOf(error) }),
      );
    }, PLAN_DELAY_MILLIS);
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [api, requestKey, swarmKey]);

  const keep = (node: number, kept: boolean): void =>
    setDropped((before) => {
      const after = new Set(before);
      if (kept) after.delete(node);
      else after.add(node);
      return after;
    });
  const uploaded = (info: DatasetInfo): void => {
    setProblem('');
    setDatasets((list) => [...(list ?? []).filter((d) => d.id !== info.id), info]);
    setDataset(info.id);
  };
  const start = async (): Promise<void> => {
    if (plan.kind !== 'ready') return;
    setProblem('');
    await api.start(plan.request);
    onStarted();
  };
  return (
    <section class="setup" aria-label="New run" data-testid="setup">
      <div class="panel step model-step">
        <h2>Model</h2>
        <Models models={models} chosen={model} onChoose={setModel} />
      </div>
      <div class="panel step data-step">
        <h2>Data</h2>
        <Datasets api={api} datasets={datasets} model={model} chosen={dataset} onChoose={setDataset} onUploaded={uploaded} />
      </div>
      <div class="panel step plan-step">
        <h2>Plan</h2>
        <Settings texts={texts} onChange={setTexts} />
        {'problem' in parsed ? <Notice tone="bad">{parsed.problem}</Notice> : (
          <>
            <PlanView plan={plan} nodes={nodes} chosen={model !== '' && dataset !== ''} without={without} withAll={withAll?.key === compareKey ? withAll.preview : null} />
            {nodes.length > 1 && <Kept nodes={nodes} without={without} onKeep={keep} />}
          </>
        )}
        {problem && <Notice tone="bad">{problem}</Notice>}
        <div class="actions">
          <ActionButton class="primary" testId="start" disabled={plan.kind !== 'ready' || 'problem' in parsed} run={start} onError={show}>
            Start
          </ActionButton>
        </div>
      </div>
    </section>
  );
}

function Models({ models, chosen, onChoose }: { models: ModelInfo[] | null; chosen: string; onChoose: (id: string) => void }): JSX.Element {
  if (models === null) return <p class="quiet">Looking for models…</p>;
  if (models.length === 0) return <p>The server found no model: put a Hugging Face folder where its start message says, then reload.</p>;
  return (
    <div class="choices" role="radiogroup" aria-label="Model">
      {models.map((model) => (
        <label key={model.id} class={`choice${model.problem ? ' unusable' : ''}`}>
          <input type="radio" name="model" value={model.id} checked={model.id === chosen} disabled={Boolean(model.problem)} onChange={() => onChoose(model.id)} />
          <span>
            <b>{model.name}</b>
            <small>
              {model.problem ? sentence(model.problem) : `${modelFacts(model.parameters, model.layers, model.width)}, ${bytes(model.bytes)}, reads up to ${count(model.max_positions)} tokens`}
            </small>
          </span>
        </label>
      ))}
    </div>
  );
}

function Datasets(props: {
  api: Api;
  datasets: DatasetInfo[] | null;
  model: string;
  chosen: string;
  onChoose: (id: string) => void;
  onUploaded: (info: DatasetInfo) => void;
}): JSX.Element {
  const { api, datasets, model, chosen } = props;
  return (
    <>
      {datasets === null ? (
        <p class="quiet">Looking for data…</p>
      ) : (
        <div class="choices" role="radiogroup" aria-label="Data">
          {datasets.map((dataset) => (
            <label key={dataset.id} class="choice">
              <input type="radio" name="dataset" value={dataset.id} checked={dataset.id === chosen} onChange={() => props.onChoose(dataset.id)} />
              <span>
                <b>{dataset.name}</b>
                <small>
                  {plural(dataset.train_rows, 'row')} to learn from, {count(dataset.held_out_rows)} held out to test with
                </small>
              </span>
            </label>
          ))}
        </div>
      )}
      <Upload api={api} onUploaded={props.onUploaded} />
      {chosen && model && <Preview api={api} dataset={chosen} model={model} />}
    </>
  );
}

function Upload({ api, onUploaded }: { api: Api; onUploaded: (info: DatasetInfo) => void }): JSX.Element {
  const [over, setOver] = useState(false);
  const [state, setState] = useState<{ kind: 'idle' } | { kind: 'busy'; name: string } | { kind: 'bad'; sentence: string }>({ kind: 'idle' });
  const input = useRef<HTMLInputElement>(null);
  const take = (files: FileList | null | undefined): void => {
    const file = files?.[0];
    if (!file) return;
    if (file.size === 0) return setState({ kind: 'bad', sentence: `${file.name} is empty: choose a file with one example per line.` });
    setState({ kind: 'busy', name: file.name });
    api.upload(file).then(
      (info) => {
        setState({ kind: 'idle' });
        onUploaded(info);
      },
      (error: unknown) => setState({ kind: 'bad', sentence: sentenceOf(error) }),
    );
  };
  return (
    <>
      <label
        class={over ? 'drop over' : 'drop'}
        onDragOver={(event) => {
          event.preventDefault();
          setOver(true);
        }}
        onDragLeave={() => setOver(false)}
        onDrop={(event) => {
          event.preventDefault();
          setOver(false);
          take(event.dataTransfer?.files);
        }}
      >
        <input
          ref={input}
          type="file"
          accept=".jsonl,.json,.csv,.tsv,.txt"
          data-testid="upload"
          onChange={(event) => {
            take(event.currentTarget.files);
            event.currentTarget.value = '';
          }}
        />
        <span>{state.kind === 'busy' ? `Reading ${state.name}…` : 'Add a file: drop it here or choose one'}</span>
        <small>JSON lines, CSV or text. It stays on this computer and the devices that train.</small>
      </label>
      {state.kind === 'bad' && <Notice tone="bad">{state.sentence}</Notice>}
    </>
  );
}

function Preview({ api, dataset, model }: { api: Api; dataset: string; model: string }): JSX.Element {
  const [state, setState] = useState<{ preview: DatasetPreview } | { sentence: string } | null>(null);
  useEffect(() => {
    let current = true;
    setState(null);
    api.preview(dataset, model).then(
      (preview) => current && setState({ preview }),
      (error: unknown) => current && setState({ sentence: sentenceOf(error) }),
    );
    return () => {
      current = false;
    };
  }, [api, dataset, model]);
  if (state === null) return <p class="quiet">Counting tokens…</p>;
  if ('sentence' in state) return <Notice tone="bad">{state.sentence}</Notice>;
  const { preview } = state;
  return (
    <div class="preview" data-testid="preview">
      <p>
        <b>{count(preview.total_tokens)}</b> tokens, <b>{count(preview.labelled_tokens)}</b> of them to be learnt; a row has {preview.min_tokens} to{' '}
        {preview.max_tokens} tokens, half of them at most {preview.median_tokens}.
      </p>
      {preview.warnings.map((warning) => (
        <Notice key={warning} tone="warning">
          {warning}
        </Notice>
      ))}
      <ul class="rows">
        {preview.rows.slice(0, 5).map((row, i) => (
          <li key={i}>
            <p>{row.prompt}</p>
            <p class="response">{row.response}</p>
            <small>
              {plural(row.tokens, 'token')}
              {row.held_out ? ', held out' : ''}
            </small>
          </li>
        ))}
      </ul>
      <p class="quiet">Tuning teaches a style, a format or a task. Facts that change are better looked up than trained in.</p>
    </div>
  );
}

function Settings({ texts, onChange }: { texts: SettingTexts; onChange: (texts: SettingTexts) => void }): JSX.Element {
  return (
    <details class="settings">
      <summary>Settings</summary>
      <p class="quiet">An empty field takes what the model recommends, or else the value shown.</p>
      <div class="fields">
        {SETTINGS.map(({ key, label, placeholder, step, help }) => (
          <label key={key} class="field">
            <span>{label}</span>
            <input
              type="number"
              inputMode="decimal"
              min="0"
              step={step}
              placeholder={placeholder}
              value={texts[key] ?? ''}
              data-testid={`setting-${key}`}
              onInput={(event) => onChange({ ...texts, [key]: event.currentTarget.value })}
            />
            <small>{help}</small>
          </label>
        ))}
        <label class="field">
          <span>Weights on the devices</span>
          <select
            value={texts.weights ?? 'keep'}
            data-testid="setting-weights"
            onChange={(event) => onChange({ ...texts, weights: WEIGHT_FORMATS.find(({ format }) => format === event.currentTarget.value)?.format ?? 'keep' })}
          >
            {WEIGHT_FORMATS.map(({ format, label }) => (
              <option key={format} value={format}>
                {label}
              </option>
            ))}
          </select>
          <small>Smaller ones let a larger model fit; what is learnt stays exact.</small>
        </label>
      </div>
    </details>
  );
}

/** Which devices may be planned with. */
function Kept({ nodes, without, onKeep }: { nodes: NodeView[]; without: number[]; onKeep: (node: number, kept: boolean) => void }): JSX.Element {
  return (
    <fieldset class="kept" data-testid="kept">
      <legend>Plan with</legend>
      {nodes.map((node) => (
        <label key={node.node}>
          <input type="checkbox" checked={!without.includes(node.node)} data-testid={`keep-${node.node}`} onChange={(event) => onKeep(node.node, event.currentTarget.checked)} />
          <span>{node.name}</span>
        </label>
      ))}
    </fieldset>
  );
}

function PlanView(props: { plan: PlanState; nodes: NodeView[]; chosen: boolean; without: number[]; withAll: PlanPreview | null }): JSX.Element {
  const { plan, nodes, chosen } = props;
  if (nodes.length === 0) return <p>The plan appears as soon as a device has joined.</p>;
  if (!chosen) return <p>Choose a model and data first.</p>;
  switch (plan.kind) {
    case 'none':
    case 'asking':
      return <p class="quiet">Working out who does what…</p>;
    case 'refused':
      return <Notice tone="bad">{plan.sentence}</Notice>;
    case 'ready':
      return <PlanDetails preview={plan.preview} nodes={nodes} change={change(props.withAll, plan.preview, props.without.length, duration)} />;
  }
}

function PlanDetails({ preview, nodes, change }: { preview: PlanPreview; nodes: NodeView[]; change: string }): JSX.Element {
  const phases = predictedPhases(preview);
  const links = plannedLinks(preview.plan, nodes);
  const stores = (preview.plan.stores ?? []).length > 0;
  const streams = links.some((link) => link.epochBytes > 0);
  return (
    <div class="plan" data-testid="plan">
      <p class="plan-sum">
        <b>{duration(preview.seconds)}</b> for {plural(preview.epochs, 'epoch')} of {plural(preview.steps_per_epoch, 'step')}: {duration(phases.fill)} to fill the
        cache, {duration(phases.train)} to train from it. The cache takes <b>{bytes(preview.cache_bytes)}</b> in all.
      </p>
      <p>{comparison(preview)}</p>
      {stores && <p>The devices that train have too little storage for the cache: others keep a part of it and send its entries a step ahead.</p>}
      {preview.plan.fill === 'forward_only' && !stores && <p>Forward passes fill the cache first; then every epoch is trained from it, which is faster here.</p>}
      {change && <p data-testid="plan-change">{change}</p>}
      <ul class="plan-devices">
        {plannedDevices(preview.plan, nodes).map((device) => (
          <li key={device.node}>
            <b>{device.name}</b>
            <dl>
              <dt>fills</dt>
              <dd>{device.fill}</dd>
              <dt>trains</dt>
              <dd>{device.train}</dd>
              {device.keep && <dt>keeps</dt>}
              {device.keep && <dd>{device.keep}</dd>}
              {device.fillMemoryBytes + device.trainMemoryBytes > 0 && <dt>memory</dt>}
              {device.fillMemoryBytes + device.trainMemoryBytes > 0 && (
                <dd>
                  {bytes(device.fillMemoryBytes)}, then {bytes(device.trainMemoryBytes)}
                </dd>
              )}
            </dl>
            {device.reason && <p>{device.reason}</p>}
          </li>
        ))}
      </ul>
      {links.length > 0 && (
        <details class="plan-links">
          <summary>What goes over the links</summary>
          <div class="scroll">
            <table>
              <thead>
                <tr>
                  <th>Link</th>
                  <th>Each fill step</th>
                  <th>Each train step</th>
                  <th>Once between</th>
                  {streams && <th>Each epoch</th>}
                </tr>
              </thead>
              <tbody>
                {links.map((link) => (
                  <tr key={link.name}>
                    <td>{link.name}</td>
                    <td>{bytes(link.fillBytes)}</td>
                    <td>{bytes(link.trainBytes)}</td>
                    <td>{bytes(link.onceBytes)}</td>
                    {streams && <td>{bytes(link.epochBytes)}</td>}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </details>
      )}
      {preview.plan.gradients === 'f16' && <p class="quiet">Gradients travel in half precision: over these links that makes a step noticeably faster.</p>}
      {preview.plan.advice && <p class="quiet">{preview.plan.advice.sentence}</p>}
    </div>
  );
}
