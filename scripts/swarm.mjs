// Starts a household on this computer: a server, native nodes, and Chromium pages that join as a phone would.
//
// Used by `npm run demo` and by the browser tests, so that both drive the product the same way.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, existsSync } from "node:fs";
import https from "node:https";
import { tmpdir } from "node:os";
import path from "node:path";
import { createHmac } from "node:crypto";

const root = path.resolve(import.meta.dirname, "..");

/** Where the built program is; `profile` is `release` or `debug`. */
export function programPath(profile) {
  return path.join(root, "target", profile, process.platform === "win32" ? "barycenter.exe" : "barycenter");
}

/** A chromium to drive: $CHROMIUM, or the usual places. */
export function chromiumPath() {
  const places = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/opt/google/chrome/chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe"];
  const found = places.find((place) => place && existsSync(place));
  if (!found) throw new Error("no Chromium or Chrome was found: install one, or set CHROMIUM to its path");
  return found;
}

/** Flags: nothing may reach outside, certificates of the household are accepted, the software WebGPU adapter is visible. */
export const CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--enable-unsafe-webgpu", "--ignore-certificate-errors",
  // Several pages of one browser stand for several devices: none may be slowed because another is in front.
  "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows"];

export class Swarm {
  #children = [];
  #browser = null;
  #contexts = [];

  constructor({ profile = "release", dataDir = null, quiet = true, listen = "127.0.0.1:0", serverArguments = [] } = {}) {
    this.profile = profile;
    this.ownsDataDir = dataDir === null;
    this.dataDir = dataDir ?? mkdtempSync(path.join(tmpdir(), "barycenter-"));
    this.quiet = quiet;
    this.listen = listen;
    this.serverArguments = serverArguments;
    this.pageErrors = [];
  }

  /** Starts the server and waits until it prints its address. */
  async startServer() {
    const child = this.#spawn("server", ["serve", "--data", this.dataDir, "--listen", this.listen, "--no-open", ...this.serverArguments]);
    this.server = child;
    const line = await firstLine(child, (text) => /https:\/\/\S+#k=\S+/.exec(text)?.[0], 30_000, "the server printed no address");
    this.inviteUrl = line;
    const url = new URL(line);
    this.origin = url.origin;
    this.fragment = url.hash;
    const secret = /k=([0-9a-f]{32})/.exec(url.hash)[1];
    this.token = createHmac("sha256", secret).update("barycenter server 1").digest("hex");
    this.agent = new https.Agent({ ca: readFileSync(path.join(this.dataDir, "cert.pem")), keepAlive: true, checkServerIdentity: () => undefined });
  }

  /** Kills the server at once (no farewell), as a power cut would. */
  async killServer() {
    await kill(this.server, "SIGKILL");
  }

  /** Starts a native node; `through`: a command that starts it (as `ip netns exec NAME`), `env`: its environment besides. */
  startNativeNode(name, extra = [], { through = [], env = {} } = {}) {
    return this.#spawn(name, ["node", "--join", this.inviteUrl, "--name", name, "--data", path.join(this.dataDir, `node-${name}`), ...extra], through, env);
  }

  /** Opens a page that joins by the invitation's URL. */
  async openPage(name, { backend = "cpu", viewport = { width: 390, height: 844 }, colorScheme = "light", page = "join", auto = true, relay = false } = {}) {
    // Only here: who opens no page needs no packages.
    const { chromium } = await import("playwright-core");
    this.#browser ??= await chromium.launch({ executablePath: chromiumPath(), headless: true, args: CHROMIUM_FLAGS });
    const context = await this.#browser.newContext({ ignoreHTTPSErrors: true, viewport, colorScheme });
    this.#contexts.push(context);
    const tab = await context.newPage();
    tab.on("console", (message) => {
      if (message.type() === "error") this.pageErrors.push(`${name}: ${message.text()}`);
      if (!this.quiet) console.error(`[${name}] ${message.text()}`);
    });
    tab.on("pageerror", (error) => this.pageErrors.push(`${name}: ${error.message}`));
    const query = page === "join" && auto ? `?auto=1&name=${encodeURIComponent(name)}&backend=${backend}${relay ? "&relay=1" : ""}` : "";
    const where = page === "dashboard" ? "" : page;
    await tab.goto(`${this.origin}/${where}${query}${this.fragment}`);
    return tab;
  }

  /** One call of the server's API; JSON in, JSON (or text) out. */
  call(method, where, body) {
    return new Promise((resolve, reject) => {
      const request = https.request(`${this.origin}${where}`, { method, agent: this.agent, headers: this.#headers() }, (response) => {
        const parts = [];
        response.on("data", (part) => parts.push(part));
        response.on("end", () => {
          const text = Buffer.concat(parts).toString();
          const value = /json/.test(response.headers["content-type"] ?? "") ? JSON.parse(text) : text;
          if (response.statusCode >= 400) reject(new Error(value.error ?? `${method} ${where}: status ${response.statusCode}`));
          else resolve(value);
        });
        response.on("error", reject);
      });
      request.on("error", reject);
      request.end(body === undefined ? undefined : JSON.stringify(body));
    });
  }

  /** Reads snapshots until `visit` returns something other than undefined. */
  snapshots(visit, timeoutMillis = 240_000) {
    return new Promise((resolve, reject) => {
      const request = https.request(`${this.origin}/api/snapshots`, { agent: this.agent, headers: this.#headers() });
      const timer = setTimeout(() => finish(reject, new Error(`nothing happened within ${timeoutMillis / 1000} s`)), timeoutMillis);
      const finish = (settle, value) => {
        clearTimeout(timer);
        request.destroy();
        settle(value);
      };
      request.on("error", (error) => finish(reject, error));
      request.on("response", (response) => {
        let text = "";
        response.setEncoding("utf8");
        response.on("data", (part) => {
          text += part;
          const lines = text.split("\n");
          text = lines.pop();
          for (const line of lines.filter(Boolean)) {
            try {
              const value = visit(JSON.parse(line));
              if (value !== undefined) return finish(resolve, value);
            } catch (error) {
              return finish(reject, error);
            }
          }
        });
        response.on("end", () => finish(reject, new Error("the server ended the stream")));
        response.on("error", (error) => finish(reject, error));
      });
      request.end();
    });
  }

  /** Resolves when `count` nodes have joined (and all links among them are up). */
  waitForNodes(count, timeoutMillis = 60_000) {
    return this.snapshots((s) => (s.nodes.length >= count && s.links.length >= (count * (count - 1)) / 2 ? s : undefined), timeoutMillis);
  }

  /** Process ids of the native nodes, in the order in which they were started. */
  nodeProcesses() {
    return this.#children.filter((child) => child !== this.server).map((child) => child.pid);
  }

  /** Ends everything that was started here. */
  async stop() {
    await Promise.allSettled(this.#contexts.map((context) => context.close()));
    await this.#browser?.close().catch(() => {});
    await Promise.allSettled(this.#children.map((child) => kill(child, "SIGTERM")));
    this.agent?.destroy();
    if (this.ownsDataDir) rmSync(this.dataDir, { recursive: true, force: true });
  }

  #headers() {
    return { authorization: `Bearer ${this.token}`, "content-type": "application/json" };
  }

  #spawn(label, args, through = [], env = {}) {
    const [command, ...rest] = [...through, programPath(this.profile), ...args];
    const child = spawn(command, rest, { stdio: ["ignore", "pipe", "pipe"], env: { RUST_LOG: "warn", ...process.env, ...env } });
    this.#children.push(child);
    child.tail = [];
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", (text) => {
        child.tail = [...child.tail, text].slice(-40);
        if (!this.quiet) process.stderr.write(text.replace(/^/gm, `[${label}] `));
      });
    }
    return child;
  }
}

function firstLine(child, match, timeoutMillis, complaint) {
  return new Promise((resolve, reject) => {
    let seen = "";
    const timer = setTimeout(() => reject(new Error(`${complaint}; it said: ${seen}`)), timeoutMillis);
    child.once("exit", (code) => reject(new Error(`the program ended with ${code}; it said: ${seen}${child.tail.join("")}`)));
    child.stdout.on("data", (text) => {
      seen += text;
      const found = match(seen);
      if (found) {
        clearTimeout(timer);
        resolve(found);
      }
    });
  });
}

/** Ends a child process and waits until it has. */
export function kill(child, signal = "SIGTERM") {
  return new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) return resolve();
    const timer = setTimeout(() => child.kill("SIGKILL"), 5_000);
    child.once("exit", () => {
      clearTimeout(timer);
      resolve();
    });
    child.kill(signal);
  });
}
