//! Where the bodies of the swarm picture stand, and where their centre of mass lies between them.

/** A body: mass is the device's measured speed. */
export interface Body {
  id: number;
  mass: number;
}

/** A point in units of the picture's half width and half height (−1 … 1, y down). */
export interface Point {
  x: number;
  y: number;
}

/** A placed body. */
export interface Placed extends Point {
  id: number;
  /** Share of the whole mass, 0 … 1. */
  share: number;
}

/** The picture: bodies, and the point that they circle. */
export interface Constellation {
  bodies: Placed[];
  barycentre: Point;
}

/** Below this extent an axis is not stretched: two bodies stay on their slight diagonal. */
const MIN_EXTENT = 0.6;

/**
 * Places bodies evenly around the picture and finds Σ mass · position / Σ mass.
 *
 * Even spacing keeps bodies and their labels apart whatever their masses; the point moves towards the heavy ones.
 */
export function placeBodies(bodies: readonly Body[]): Constellation {
  const masses = bodies.map((body) => Math.max(body.mass, 1e-3));
  const total = masses.reduce((sum, mass) => sum + mass, 0);
  const points = stretched(bodies.map((_, i) => evenPoint(i, bodies.length)));
  const placed = bodies.map((body, i) => ({ id: body.id, share: (masses[i] ?? 0) / total, x: points[i]?.x ?? 0, y: points[i]?.y ?? 0 }));
  const barycentre = placed.reduce((sum, p) => ({ x: sum.x + p.x * p.share, y: sum.y + p.y * p.share }), { x: 0, y: 0 });
  return { bodies: placed, barycentre };
}

/** Shortens a label to `length` characters with an ellipsis: SVG text has none of its own. */
export function shorten(text: string, length: number): string {
  const characters = Array.from(text);
  return characters.length <= length ? text : `${characters.slice(0, Math.max(1, length - 1)).join('').trimEnd()}…`;
}

/** Pipelines read from the left, clockwise; two bodies lie on a slight diagonal. */
function evenPoint(i: number, n: number): Point {
  if (n < 2) return { x: 0, y: 0 };
  const start = n === 2 ? Math.PI * 0.92 : Math.PI;
  const angle = start + (2 * Math.PI * i) / n;
  return { x: Math.cos(angle), y: Math.sin(angle) };
}

/** Fits the points' bounding box to −1 … 1 on each axis that is wide enough. */
function stretched(points: readonly Point[]): Point[] {
  const fit = (values: number[]): ((value: number) => number) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const half = (high - low) / 2;
    return half < MIN_EXTENT ? (value) => value : (value) => (value - (low + high) / 2) / half;
  };
  if (points.length === 0) return [];
  const fitX = fit(points.map((p) => p.x));
  const fitY = fit(points.map((p) => p.y));
  return points.map((p) => ({ x: fitX(p.x), y: fitY(p.y) }));
}
