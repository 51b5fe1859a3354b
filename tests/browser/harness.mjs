// What browser tests share: servers, Chromium, programs, screenshots. Everything started here is ended by `close()`.
//
//   test ── harness ─┬─ Chromium (one process, each page in a context of its own: its own storage and identity)
//                    ├─ https server for built files (self-signed certificate, the headers of the real server)
//                    └─ programs: `barycenter serve`, `barycenter node`

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, extname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { generate } from 'selfsigned';

/** The repository's root folder. */
export const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

/** Where built pages and the browser node lie. */
export const dist = join(root, 'web/dist');

/** Options of tests of threads: left out, and said to be, where their module could not be built or there is one processor. */
export const needsThreads = {
  skip: !existsSync(join(dist, 'assets/node_threads_bg.wasm')) ? "no module with threads: Rust's library source was not there"
    : availableParallelism() < 2 ? 'this computer has one processor' : false,
};

const target = process.env.CARGO_TARGET_DIR ? resolve(root, process.env.CARGO_TARGET_DIR) : join(root, 'target');

/** A phone as people hold it, in CSS pixels. */
export const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };

/** A laptop's window, in CSS pixels. */
export const laptop = { viewport: { width: 1280, height: 800 } };

const chromiumPlaces = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
];

// Chromium's own traffic to the world outside is off, so that a test sees only its own; the self-signed certificate of
// the home server is accepted, as a person does by hand.
const chromiumFlags = [
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--ignore-certificate-errors',
];

/** Chromium's switch that shows its software WebGPU adapter, which is hidden otherwise. */
const softwareWebGpuFlags = ['--enable-unsafe-webgpu'];

// Host candidates with plain addresses: multicast names need a network that test machines may not have.
const plainCandidatesFlags = ['--disable-features=WebRtcHideLocalIpsWithMdns'];

/** The programs, pages and servers of one test file. Call `close()` in `after`. */
export class Harness {
  #endings = [];

  /**
   * Starts Chromium. `webgpu`: with its software adapter. `mdns`: with host names in place of addresses in ICE
   * candidates, as on a real device.
   */
  async browser({ webgpu = false, mdns = false, flags = [] } = {}) {
    const executablePath = process.env.CHROMIUM_PATH ?? chromiumPlaces.find((path) => existsSync(path));
    if (!executablePath) throw new Error('no Chromium was found: run `npm run setup`, or name one in CHROMIUM_PATH');
    const browser = await chromium.launch({
      executablePath,
      chromiumSandbox: false,
      args: [
        ...chromiumFlags,
        ...(webgpu ? softwareWebGpuFlags : []),
        ...(mdns ? [] : plainCandidatesFlags),
        ...flags,
      ],
    });
    this.#endings.push(() => browser.close());
    return browser;
  }

  /** Opens a page in a context of its own. Its `problems` collects console errors and uncaught exceptions. */
  async page(browser, options = laptop) {
    const context = await browser.newContext({ ignoreHTTPSErrors: true, ...options });
    const page = await context.newPage();
    const problems = [];
    const lines = [];
    page.on('console', (message) => {
      lines.push(`[${message.type()}] ${message.text()}`);
      if (message.type() === 'error') problems.push(message.text());
    });
    page.on('pageerror', (error) => problems.push(String(error)));
    page.on('crash', () => problems.push('the page crashed'));
    return { page, context, problems, lines };
  }

  /**
   * Serves `routes` (path → text or bytes) and, below `/`, the files of `folder`, over https. Answers its address.
   * `isolated`: with the headers of cross-origin isolation, which threads in wasm need.
   */
  async files(folder, routes = {}, { isolated = true } = {}) {
    const names = [{ type: 2, value: 'localhost' }, { type: 7, ip: '127.0.0.1' }];
    const pem = await generate([{ name: 'commonName', value: 'localhost' }], {
      keySize: 2048,
      algorithm: 'sha256',
      extensions: [{ name: 'subjectAltName', altNames: names }],
    });
    const server = createServer({ key: pem.private, cert: pem.cert }, async (request, response) => {
      const path = decodeURIComponent(new URL(request.url, 'https://localhost').pathname);
      // Browsers ask for an icon by themselves.
      if (path === '/favicon.ico') return void response.writeHead(204).end();
      const body = routes[path] ?? (await readFile(join(folder, join('/', path))).catch(() => undefined));
      response.writeHead(body === undefined ? 404 : 200, {
        'content-type': contentTypes[extname(path)] ?? 'text/html; charset=utf-8',
        ...(isolated ? isolation : {}),
      });
      response.end(body ?? 'nothing here');
    });
    await new Promise((done) => server.listen(0, '127.0.0.1', done));
    this.#endings.push(() => {
      server.closeAllConnections();
      return new Promise((done) => server.close(done));
    });
    return `https://localhost:${server.address().port}`;
  }

  /** Starts the built `barycenter` with these arguments. */
  program(args, { env = {}, name = args[0] } = {}) {
    const file = process.env.BARYCENTER ?? join(target, 'debug/barycenter');
    if (!existsSync(file)) throw new Error(`${file} is not there: run \`cargo build -p barycenter\``);
    const program = new Program(name, spawn(file, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] }));
    this.#endings.push(() => program.end());
    return program;
  }

  /** An empty folder that `close()` removes. */
  folder() {
    const folder = mkdtempSync(join(tmpdir(), 'barycenter-test-'));
    this.#endings.push(() => rmSync(folder, { recursive: true, force: true }));
    return folder;
  }

  /** Ends everything that was started, newest first. */
  async close() {
    for (const end of this.#endings.splice(0).reverse()) {
      try {
        await end();
      } catch (error) {
        console.error(`while closing: ${error}`);
      }
    }
  }
}

/** One running program, its output kept for the tests to read. */
export class Program {
  /** Everything it wrote so far, standard output and errors in the order in which they came. */
  output = '';
  /** Settles with its exit code, or the signal's name, when it ends. */
  ended;
  #child;
  #over = false;
  #listeners = new Set();

  constructor(name, child) {
    this.name = name;
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8');
      stream.on('data', (text) => {
        this.output += text;
        for (const listener of this.#listeners) listener();
      });
    }
    this.ended = new Promise((done) => {
      child.on('exit', (code, signal) => {
        this.#over = true;
        done(code ?? signal);
        for (const listener of this.#listeners) listener();
      });
      child.on('error', (error) => {
        this.output += String(error);
        this.#over = true;
        done(String(error));
      });
    });
  }

  /** Waits until its output matches; answers the match. Fails when it ends before, or takes too long. */
  async says(pattern, millis = 30_000) {
    let check;
    let timer;
    try {
      return await new Promise((found, failed) => {
        check = () => {
          const match = this.output.match(pattern);
          if (match) found(match);
          else if (this.#over) failed(new Error(`${this.name} ended without saying ${pattern}:\n${this.output}`));
        };
        timer = setTimeout(() => failed(new Error(`${this.name} did not say ${pattern} in ${millis} ms:\n${this.output}`)), millis);
        this.#listeners.add(check);
        check();
      });
    } finally {
      clearTimeout(timer);
      this.#listeners.delete(check);
    }
  }

  /** Takes it away without warning, as a crash or an empty battery would. */
  kill() {
    this.#child.kill('SIGKILL');
    return this.ended;
  }

  /** Sends it a signal: `SIGINT` is Ctrl-C, `SIGSTOP` makes it stand still. */
  signal(name) {
    this.#child.kill(name);
  }

  /** Asks it to stop; after five seconds, makes it. */
  async end() {
    if (this.#over) return;
    this.#child.kill('SIGINT');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5_000);
    await this.ended;
    clearTimeout(timer);
  }
}

/** Writes a picture of the page into `target/screenshots`. */
export async function screenshot(page, name, options = {}) {
  const folder = join(target, 'screenshots');
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), ...options });
}

/** Waits until `check` answers something true, and answers that. */
export async function until(what, check, millis = 30_000, everyMillis = 100) {
  const deadline = Date.now() + millis;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`${what}: not within ${millis} ms`);
    await new Promise((done) => setTimeout(done, everyMillis));
  }
}

const isolation = {
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cross-origin-resource-policy': 'same-origin',
};

const contentTypes = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
};
