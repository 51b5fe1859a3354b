//! Where the bodies of the swarm picture stand: their centre of mass is the middle of the picture.

/** A body: mass is the device's measured speed. */
export interface Body {
  id: number;
  mass: number;
}

/** A placed body, in units of the picture's half width and half height (−1 … 1). */
export interface Placed {
  id: number;
  x: number;
  y: number;
  /** Distance from the centre of mass, the radius of its orbit. */
  orbit: number;
  /** Share of the whole mass, 0 … 1. */
  share: number;
}

/**
 * Places bodies so that Σ mass · position = 0.
 *
 * They start evenly on a circle, which keeps them apart; shifting all by the centre of mass keeps their distances, and
 * scaling makes the outermost orbit 1. One body alone stands in the middle.
 */
export function placeBodies(bodies: readonly Body[]): Placed[] {
  const masses = bodies.map((body) => Math.max(body.mass, 1e-3));
  const total = masses.reduce((sum, mass) => sum + mass, 0);
  const shares = masses.map((mass) => mass / total);
  // Two bodies lie on a slight diagonal, more start at the left: pipelines read from left to right.
  const start = bodies.length === 2 ? Math.PI * 0.94 : Math.PI;
  const even = bodies.map((_, i) => {
    const angle = start + (2 * Math.PI * i) / bodies.length;
    return { x: Math.cos(angle), y: Math.sin(angle) };
  });
  const centre = even.reduce((sum, p, i) => ({ x: sum.x + p.x * (shares[i] ?? 0), y: sum.y + p.y * (shares[i] ?? 0) }), { x: 0, y: 0 });
  const shifted = even.map((p) => ({ x: p.x - centre.x, y: p.y - centre.y }));
  const farthest = Math.max(...shifted.map((p) => Math.hypot(p.x, p.y)), 0);
  const scale = bodies.length < 2 || farthest === 0 ? 0 : 1 / farthest;
  return bodies.map((body, i) => {
    const x = (shifted[i]?.x ?? 0) * scale;
    const y = (shifted[i]?.y ?? 0) * scale;
    return { id: body.id, x, y, orbit: Math.hypot(x, y), share: shares[i] ?? 0 };
  });
}

/** Shortens a label to `length` characters with an ellipsis: SVG text has none of its own. */
export function shorten(text: string, length: number): string {
  const characters = Array.from(text);
  return characters.length <= length ? text : `${characters.slice(0, Math.max(1, length - 1)).join('').trimEnd()}…`;
}
