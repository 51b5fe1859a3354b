//! The try-it page: one prompt, answered by the base and by the tuned model side by side.

import './styles.css';
import { render } from 'preact';
import type { JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { Api, checkVersion, sentenceOf } from './api';
import { dateTime, duration, percent } from './format';
import type { AskReply, RunInfo } from './protocol';
import { findRoomKey } from './secret';
import { Notice, Refusal, Shell } from './ui';

interface Asked {
  id: number;
  prompt: string;
  reply: AskReply;
}

/** How many held-out prompts are offered. */
const EXAMPLES = 6;

function TryIt({ api, fragment }: { api: Api; fragment: string }): JSX.Element {
  const [runs, setRuns] = useState<RunInfo[] | null>(null);
  const [run, setRun] = useState<number | null>(null);
  const [examples, setExamples] = useState<string[]>([]);
  const [prompt, setPrompt] = useState('');
  const [waiting, setWaiting] = useState(false);
  const [problem, setProblem] = useState('');
  const [asked, setAsked] = useState<Asked[]>([]);

  useEffect(() => {
    api.runs().then(
      (all) => {
        const tuned = tunedRuns(all);
        setRuns(tuned);
        setRun((tuned.find((info) => info.state === 'done') ?? tuned[0])?.run ?? null);
      },
      (error: unknown) => setProblem(sentenceOf(error)),
    );
  }, [api]);

  const chosen = runs?.find((info) => info.run === run) ?? null;
  useEffect(() => {
    if (!chosen) return;
    api.preview(chosen.dataset, chosen.model).then(
      ({ rows }) => {
        const unseen = rows.filter((row) => row.held_out);
        setExamples((unseen.length > 0 ? unseen : rows).slice(0, EXAMPLES).map((row) => row.prompt));
      },
      // Without examples the page still works.
      () => setExamples([]),
    );
  }, [api, chosen?.dataset, chosen?.model]);

  const ask = (text: string): void => {
    const question = text.trim();
    if (question === '' || waiting) return;
    setProblem('');
    setWaiting(true);
    api
      .ask({ prompt: question, run })
      .then((reply) => setAsked((before) => [{ id: before.length, prompt: question, reply }, ...before]))
      .catch((error: unknown) => setProblem(sentenceOf(error)))
      .finally(() => setWaiting(false));
  };

  return (
    <Shell page="try" fragment={fragment} moving={waiting}>
      <section class="band calm">
        <div class="band-text">
          <h1>Ask both models</h1>
          <p>The same question goes to the base model and to the one your devices tuned. A device of the swarm answers.</p>
        </div>
      </section>
      {runs === null && !problem && <p class="quiet">Looking for tuned models…</p>}
      {runs?.length === 0 && (
        <Notice tone="info">
          Nothing is tuned yet. Start a run on the <a href={`/${fragment}`}>dashboard</a>; as soon as it has saved its first checkpoint, you can ask here.
        </Notice>
      )}
      {runs !== null && runs.length > 0 && (
        <form
          class="panel ask-form"
          onSubmit={(event) => {
            event.preventDefault();
            ask(prompt);
          }}
        >
          <label class="field">
            <span>Question</span>
            <textarea
              rows={3}
              value={prompt}
              data-testid="prompt"
              placeholder={examples[0] ?? 'Write what you would say to the model'}
              onInput={(event) => setPrompt(event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key === 'Enter' && (event.metaKey || event.ctrlKey)) ask(prompt);
              }}
            />
          </label>
          {examples.length > 0 && (
            <div class="examples">
              <span class="quiet">Unseen in training:</span>
              {examples.map((example) => (
                <button
                  key={example}
                  type="button"
                  class="example-chip"
                  disabled={waiting}
                  onClick={() => {
                    setPrompt(example);
                    ask(example);
                  }}
                >
                  {example}
                </button>
              ))}
            </div>
          )}
          <div class="ask-row">
            <label class="field inline">
              <span>Tuned by</span>
              <select value={String(run ?? '')} data-testid="run" onChange={(event) => setRun(Number(event.currentTarget.value))}>
                {runs.map((info) => (
                  <option key={info.run} value={String(info.run)}>
                    {runLabel(info)}
                  </option>
                ))}
              </select>
            </label>
            <button class="primary" type="submit" disabled={waiting || prompt.trim() === ''} aria-busy={waiting} data-testid="ask">
              {waiting ? 'Asking…' : 'Ask'}
            </button>
          </div>
        </form>
      )}
      {problem && <Notice tone="bad">{problem}</Notice>}
      <div aria-live="polite">
        {asked.map(({ id, prompt: question, reply }) => (
          <article key={id} class="panel answer" data-testid="answer">
            <p class="ask">{question}</p>
            <div class="answers">
              <section class="answer-base">
                <h2>Base</h2>
                <p>{reply.base || '(no answer)'}</p>
              </section>
              <section class="answer-tuned">
                <h2>Tuned</h2>
                <p>{reply.tuned || '(no answer)'}</p>
              </section>
            </div>
            <p class="quiet">
              Run {reply.run}, answered by {reply.answered_by} in {duration(reply.seconds)}.
            </p>
          </article>
        ))}
      </div>
    </Shell>
  );
}

/** Runs that may have a checkpoint, the newest first. */
export function tunedRuns(runs: readonly RunInfo[]): RunInfo[] {
  return runs.filter((info) => info.loss != null || info.state === 'done').sort((a, b) => b.run - a.run);
}

function runLabel(info: RunInfo): string {
  const result = info.exact_match_after != null ? `, ${percent(info.exact_match_after)} right` : info.state === 'done' ? '' : `, ${info.state}`;
  return `Run ${info.run}${result}: ${info.dataset}, ${dateTime(info.started_at)}`;
}

async function main(): Promise<void> {
  const root = document.getElementById('root');
  if (!root) return;
  const key = findRoomKey();
  const shown = (content: JSX.Element): void =>
    render(
      <Shell page="try" fragment={key?.fragment ?? ''}>
        {content}
      </Shell>,
      root,
    );
  if (!key) return shown(<Refusal />);
  if (!isSecureContext) return shown(<Notice tone="bad">This page is not secure, so it cannot prove its invitation: open the address that starts with https://.</Notice>);
  const version = await checkVersion();
  if (version) return shown(<Notice tone="bad">{version.sentence}</Notice>);
  addEventListener('hashchange', () => location.reload());
  render(<TryIt api={await Api.open(key.secret)} fragment={key.fragment} />, root);
}

void main();
