// Peer connections on behalf of the node in its Worker, where RTCPeerConnection does not exist.
//
// The Worker decides everything; this file only carries its commands to the browser and the browser's events back,
// over one MessagePort. Frames travel as transferred ArrayBuffers. Its other half is crates/transport/src/web.rs.

/** Channels of every connection: number (negotiated out of band) and label. */
const PLANES = ['control', 'bulk'] as const;
/** At this many bytes in a channel's buffer the browser tells that it has run low; a quarter of the Worker's window. */
const LOW_BYTES = 512 * 1024;
/** The Worker is told of sent bytes in portions of at least this size, so that messages about messages stay few. */
const REPORT_BYTES = 128 * 1024;
/** How often a connection is asked whether anything came in. */
const LOOK_MILLIS = 500;
/**
 * After so many looks without a byte or a consent check the other end is reported as silent. Chromium itself takes more
 * than seven seconds; its checks on a quiet link come every 2.5 s.
 */
const SILENT_LOOKS = 7;

type Kind = 'offer' | 'answer';

/** What the Worker asks for. */
type Command =
  | { do: 'create'; id: number; offerer: boolean }
  | { do: 'setRemote'; id: number; kind: Kind; sdp: string }
  | { do: 'addIce'; id: number; candidate: string }
  | { do: 'send'; id: number; plane: number; data: ArrayBuffer }
  | { do: 'close'; id: number };

/** What the Worker is told. */
type Report =
  | { is: 'localDescription'; id: number; kind: Kind; sdp: string }
  | { is: 'candidate'; id: number; candidate: string }
  | { is: 'open'; id: number; plane: number }
  | { is: 'message'; id: number; plane: number; data: ArrayBuffer }
  | { is: 'sent'; id: number; plane: number; bytes: number }
  | { is: 'disconnected'; id: number }
  | { is: 'reconnected'; id: number }
  | { is: 'closed'; id: number; reason: string };

type Say = (report: Report, transfer?: Transferable[]) => void;

/** Serves a node at `port` until it is closed, which closes every connection. */
export function startRtcBridge(port: MessagePort): { close(): void } {
  const connections = new Map<number, BridgedConnection>();
  const say: Say = (report, transfer = []) => {
    if (report.is === 'closed') {
      connections.delete(report.id);
    }
    port.postMessage(report, transfer);
  };
  port.onmessage = (event: MessageEvent<Command>) => {
    const command = event.data;
    if (command.do === 'create') {
      open(connections, command.id, command.offerer, say);
      return;
    }
    const connection = connections.get(command.id);
    if (connection === undefined) {
      return; // It has reported its end; the Worker has not read that yet.
    }
    switch (command.do) {
      case 'setRemote':
        connection.setRemote(command.kind, command.sdp);
        break;
      case 'addIce':
        connection.addIce(command.candidate);
        break;
      case 'send':
        connection.send(command.plane, command.data);
        break;
      case 'close':
        connections.delete(command.id);
        connection.close();
        break;
    }
  };
  const closeAll = (): void => {
    for (const connection of connections.values()) {
      connection.close();
    }
    connections.clear();
  };
  // A page that goes says so to its peers; otherwise they find out by silence.
  window.addEventListener('pagehide', closeAll);
  return {
    close() {
      window.removeEventListener('pagehide', closeAll);
      closeAll();
      port.close();
    },
  };
}

function open(connections: Map<number, BridgedConnection>, id: number, offerer: boolean, say: Say): void {
  try {
    const connection = new BridgedConnection(id, offerer, say);
    connections.set(id, connection);
    connection.start();
  } catch (error) {
    say({ is: 'closed', id, reason: `this browser could not open a connection: ${text(error)}` });
  }
}

class BridgedConnection {
  readonly #id: number;
  readonly #offerer: boolean;
  readonly #say: Say;
  readonly #peer: RTCPeerConnection;
  readonly #channels: BridgedChannel[];
  /** Descriptions and candidates take effect one after the other. */
  #steps: Promise<void> = Promise.resolve();
  #ended = false;
  #disconnected = false;
  #watch: number | null = null;
  /** What the last look counted, and how many looks counted the same. */
  #heard = 0;
  #silentLooks = 0;

  constructor(id: number, offerer: boolean, say: Say) {
    this.#id = id;
    this.#offerer = offerer;
    this.#say = say;
    // No servers: links stay in the house.
    this.#peer = new RTCPeerConnection({ iceServers: [] });
    this.#peer.onicecandidate = ({ candidate }) => {
      if (candidate !== null && candidate.candidate !== '') {
        this.#report({ is: 'candidate', id, candidate: JSON.stringify(candidate) });
      }
    };
    this.#peer.onconnectionstatechange = () => this.#onState();
    this.#channels = PLANES.map((label, plane) => {
      const channel = this.#peer.createDataChannel(label, { negotiated: true, id: plane, ordered: true });
      channel.onclose = () => this.#end('the other device closed the link');
      return new BridgedChannel(id, plane, channel, (report, transfer) => this.#report(report, transfer));
    });
  }

  /** An offerer describes itself unasked. */
  start(): void {
    if (this.#offerer) {
      this.#step('could not be offered', () => this.#describe());
    }
  }

  setRemote(kind: Kind, sdp: string): void {
    this.#step('does not fit the one of the other device', async () => {
      await this.#peer.setRemoteDescription({ type: kind, sdp });
      if (kind === 'offer') {
        await this.#describe();
      }
    });
  }

  addIce(candidate: string): void {
    this.#steps = this.#steps.then(async () => {
      try {
        await this.#peer.addIceCandidate(JSON.parse(candidate) as RTCIceCandidateInit);
      } catch (error) {
        console.debug('a candidate is not used:', text(error));
      }
    });
  }

  send(plane: number, data: ArrayBuffer): void {
    try {
      this.#channels[plane]?.send(data);
    } catch (error) {
      this.#end(`this browser could not send: ${text(error)}`);
    }
  }

  close(): void {
    this.#ended = true;
    if (this.#watch !== null) window.clearInterval(this.#watch);
    this.#peer.close();
  }

  async #describe(): Promise<void> {
    await this.#peer.setLocalDescription();
    const description = this.#peer.localDescription;
    if (description !== null && (description.type === 'offer' || description.type === 'answer')) {
      this.#report({ is: 'localDescription', id: this.#id, kind: description.type, sdp: description.sdp });
    }
  }

  #onState(): void {
    const state = this.#peer.connectionState;
    if (state === 'failed' || state === 'closed') {
      this.#end('the connection to the other device broke');
    } else if (state === 'disconnected') {
      this.#setDisconnected(true);
    } else if (state === 'connected') {
      this.#setDisconnected(false);
      this.#watch ??= window.setInterval(() => void this.#look(), LOOK_MILLIS);
    }
  }

  async #look(): Promise<void> {
    const stats: ReadonlyMap<string, RTCStats> = await this.#peer.getStats();
    let heard = 0;
    for (const entry of stats.values()) {
      if (entry.type === 'candidate-pair') {
        const pair = entry as RTCIceCandidatePairStats & { requestsReceived?: number };
        heard += (pair.bytesReceived ?? 0) + (pair.responsesReceived ?? 0) + (pair.requestsReceived ?? 0);
      }
    }
    this.#silentLooks = heard === this.#heard ? this.#silentLooks + 1 : 0;
    this.#heard = heard;
    if (this.#silentLooks >= SILENT_LOOKS) {
      this.#setDisconnected(true);
    } else if (this.#silentLooks === 0 && this.#peer.connectionState === 'connected') {
      this.#setDisconnected(false);
    }
  }

  #setDisconnected(disconnected: boolean): void {
    if (disconnected !== this.#disconnected) {
      this.#disconnected = disconnected;
      this.#report({ is: disconnected ? 'disconnected' : 'reconnected', id: this.#id });
    }
  }

  #step(failure: string, act: () => Promise<void>): void {
    this.#steps = this.#steps.then(act).catch((error: unknown) => this.#end(`a connection ${failure}: ${text(error)}`));
  }

  #report(report: Report, transfer?: Transferable[]): void {
    if (!this.#ended) {
      this.#say(report, transfer);
    }
  }

  #end(reason: string): void {
    if (!this.#ended) {
      this.#say({ is: 'closed', id: this.#id, reason });
      this.close();
    }
  }
}

/** A data channel and the account of what it still holds. */
class BridgedChannel {
  readonly #id: number;
  readonly #plane: number;
  readonly #channel: RTCDataChannel;
  readonly #say: Say;
  /** Bytes given to the channel that the Worker was not told to have left. */
  #unreported = 0;

  constructor(id: number, plane: number, channel: RTCDataChannel, say: Say) {
    this.#id = id;
    this.#plane = plane;
    this.#channel = channel;
    this.#say = say;
    channel.binaryType = 'arraybuffer';
    channel.bufferedAmountLowThreshold = LOW_BYTES;
    channel.onopen = () => say({ is: 'open', id, plane });
    channel.onbufferedamountlow = () => this.#account(0);
    channel.onmessage = ({ data }: MessageEvent<unknown>) => {
      // A text message is no frame: an empty one makes the Worker refuse it.
      const frame = data instanceof ArrayBuffer ? data : new ArrayBuffer(0);
      say({ is: 'message', id, plane, data: frame }, [frame]);
    };
  }

  send(data: ArrayBuffer): void {
    const bytes = data.byteLength;
    this.#channel.send(data);
    this.#unreported += bytes;
    this.#account(REPORT_BYTES);
  }

  #account(atLeast: number): void {
    const bytes = this.#unreported - this.#channel.bufferedAmount;
    if (bytes > 0 && bytes >= atLeast) {
      this.#unreported -= bytes;
      this.#say({ is: 'sent', id: this.#id, plane: this.#plane, bytes });
    }
  }
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
