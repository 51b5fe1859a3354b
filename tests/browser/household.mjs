// A household of one computer: the home server, its nodes, and what a person would see of them.

import { createHmac } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { root, until } from './harness.mjs';

/** The model and the data that ship with the project. */
export const demo = join(root, 'assets/demo');

/** States of a run that are the end of it. */
const ended = ['done', 'stopped', 'failed'];

/** One home server over an empty data folder, with the demo's model. */
export class Household {
  /** Starts it; `data` (a folder) makes it the same household after a restart. */
  static async start(harness, { data = harness.folder() } = {}) {
    if (!existsSync(join(demo, 'model.safetensors'))) {
      throw new Error('assets/demo holds no model: make it with `cargo xtask make-demo`');
    }
    const household = new Household();
    household.harness = harness;
    household.data = data;
    await household.serve();
    return household;
  }

  /** Starts the server, also again after `server.kill()`. */
  async serve() {
    this.server = this.harness.program(['serve', '--listen', '127.0.0.1:0', '--host', '127.0.0.1', '--no-open', '--data', this.data, '--models', demo]);
    [, this.inviteUrl] = await this.server.says(/(https:\S+\/join#k=\S+)/);
    [, this.dashboardUrl] = await this.server.says(/(https:\/\/localhost:\d+\/#k=\S+)/);
    const secret = new URLSearchParams(new URL(this.inviteUrl).hash.slice(1)).get('k');
    // Twin of `RoomSecret::server_token`.
    this.token = createHmac('sha256', secret).update('barycenter server 1').digest('hex');
  }

  /** The address that a page opens to join by itself. */
  joinUrl(name, { auto = true, backend = 'cpu', threads, relay = false } = {}) {
    const url = new URL(this.inviteUrl);
    const query = new URLSearchParams({ name, backend, ...(auto ? { auto: '1' } : {}), ...(threads ? { threads } : {}), ...(relay ? { relay: '1' } : {}) });
    return `${url.origin}${url.pathname}?${query}${url.hash}`;
  }

  /** A page that joins by itself; settles when it is in. `wishes`: those of `joinUrl`. */
  async joinPage(browser, name, options, wishes) {
    const opened = await this.harness.page(browser, options);
    return this.joinAgain(opened, name, wishes);
  }

  /** The same page, with what its browser keeps, joins. */
  async joinAgain(opened, name, wishes) {
    await opened.page.goto(this.joinUrl(name, wishes));
    await this.untilJoined(name);
    return opened;
  }

  /** A native node; settles when it is in. `data`: the folder of one that was here before; what it offers, in MB. */
  async joinNative(name, data = this.harness.folder(), { memory = 512, storage = 8192 } = {}) {
    const node = this.harness.program(
      ['node', '--join', this.inviteUrl, '--name', name, '--device', 'cpu', '--memory-mb', `${memory}`, '--storage-mb', `${storage}`, '--data', data],
      { name },
    );
    await node.says(/joined as node/);
    return node;
  }

  async untilJoined(name) {
    await until(`${name} joins`, async () => (await this.snapshot()).nodes.some((node) => node.name === name), 60_000);
  }

  /** Waits until no node is left: who leaves, or closes the page, is missed within five seconds. */
  async untilNobody() {
    await until('everybody is gone', async () => (await this.snapshot()).nodes.length === 0, 5_000);
  }

  /** Calls the server's API; answers parsed JSON, or the bytes of anything else. */
  async api(path, { method = 'GET', body, token = this.token } = {}) {
    const { status, bytes, type } = await this.#send(path, method, body, token);
    const text = bytes.toString();
    if (status >= 400) throw new Error(`${method} ${path}: ${status} ${text}`);
    return type.includes('json') ? JSON.parse(text) : bytes;
  }

  /** Status of a call, whatever it is. */
  async status(path, { token = this.token } = {}) {
    return (await this.#send(path, 'GET', undefined, token)).status;
  }

  #send(path, method, body, token) {
    const payload = body === undefined || Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
    const headers = {
      authorization: `Bearer ${token}`,
      ...(payload ? { 'content-type': Buffer.isBuffer(body) ? 'application/octet-stream' : 'application/json', 'content-length': payload.length } : {}),
    };
    return new Promise((done, failed) => {
      const call = request(new URL(path, this.inviteUrl), { method, headers, rejectUnauthorized: false }, (response) => {
        const parts = [];
        response.on('data', (part) => parts.push(part));
        response.on('error', failed);
        response.on('end', () => done({ status: response.statusCode, type: response.headers['content-type'] ?? '', bytes: Buffer.concat(parts) }));
      });
      call.setTimeout(60_000, () => call.destroy(new Error(`${method} ${path} was not answered in 60 s`)));
      call.on('error', failed);
      call.end(payload);
    });
  }

  /** What a dashboard sees now: the first line of the stream of snapshots. */
  snapshot() {
    return new Promise((done, failed) => {
      const options = { headers: { authorization: `Bearer ${this.token}` }, rejectUnauthorized: false };
      const call = request(new URL('/api/snapshots', this.inviteUrl), options, (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('error', failed);
        response.on('end', () => failed(new Error(`no snapshot: ${response.statusCode} ${text}`)));
        response.on('data', (part) => {
          text += part;
          if (!text.includes('\n')) return;
          call.destroy();
          done(JSON.parse(text.slice(0, text.indexOf('\n'))));
        });
      });
      call.on('error', failed);
      call.end();
    });
  }

  /** Uploads the first `rows` rows of the demo's personal data; answers its id. */
  async uploadRows(rows, name = 'few.jsonl') {
    const text = await readFile(join(demo, 'train.jsonl'), 'utf8');
    const body = Buffer.from(`${text.split('\n').slice(0, rows).join('\n')}\n`);
    return (await this.api(`/api/datasets?name=${name}`, { method: 'POST', body })).id;
  }

  /** Starts a run on these rows, over at least two stages where there are two nodes. */
  async startRun(dataset, wishes = {}) {
    const [model] = await this.api('/api/models');
    const body = { model: model.id, dataset, epochs: 3, batch: 8, seed: 7, min_stages: 2, use_all_nodes: true, exact_match_rows: 2, ...wishes };
    return this.api('/api/runs', { method: 'POST', body });
  }

  /** Waits until this run, as `startRun` answered it, fulfils `check`; fails when it ends before. */
  async untilRun({ run }, what, check, millis = 120_000) {
    let last;
    const tell = () => {
      const nodes = last.nodes.map((node) => `${node.name}: ${node.activity}`);
      return [`${last.run?.info.state} (${last.run?.info.note})`, ...nodes, ...last.events.map((event) => event.text)].join('\n');
    };
    const look = async () => {
      last = await this.snapshot();
      if (last.run?.info.run !== run) return undefined;
      if (check(last.run)) return last.run;
      if (ended.includes(last.run.info.state)) throw new Error(`${what}: the run has ended\n${tell()}`);
      return undefined;
    };
    try {
      return await until(what, look, millis, 250);
    } catch (error) {
      error.message += last ? `\n${tell()}` : '';
      throw error;
    }
  }
}
