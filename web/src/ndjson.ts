//! Lines out of a streamed response.

/** Cuts text that arrives in arbitrary pieces into non-empty lines. */
export class LineSplitter {
  private rest = '';

  /** Lines completed by this piece. */
  push(piece: string): string[] {
    const parts = (this.rest + piece).split('\n');
    this.rest = parts.pop() ?? '';
    return parts.map((line) => line.trim()).filter((line) => line !== '');
  }
}

/** Calls `onLine` for each line of the body until it ends; rejects when the connection breaks. */
export async function readLines(body: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const splitter = new LineSplitter();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const line of splitter.push(decoder.decode(value, { stream: true }))) onLine(line);
    }
  } finally {
    reader.releaseLock();
  }
}

/** The first line of the body; rejects when it ends before. */
export async function firstLine(body: ReadableStream<Uint8Array>): Promise<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const splitter = new LineSplitter();
  for (;;) {
    const { done, value } = await reader.read();
    const line = splitter.push(decoder.decode(value, { stream: !done }))[0];
    if (line !== undefined) return line;
    if (done) throw new Error('the server closed the connection');
  }
}
