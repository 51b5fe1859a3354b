//! The settings of a run as typed by a person; an empty one is left to the server.

import type { RunRequest, WeightFormat } from '../protocol';

/** Settings that have a field. */
export type SettingKey = 'epochs' | 'reduction' | 'tap_every' | 'batch' | 'learning_rate' | 'warmup_steps' | 'seed' | 'exact_match_rows';

/** What stands in the fields; of the weights, what is chosen. */
export type SettingTexts = Partial<Record<SettingKey, string>> & { weights?: WeightFormat };

/** How devices may hold the frozen weights; the first is the server's default. */
export const WEIGHT_FORMATS: readonly { format: WeightFormat; label: string }[] = [
  { format: 'keep', label: 'as they are stored' },
  { format: 'f16', label: 'f16: half precision' },
  { format: 'int8', label: 'int8: about half of f16' },
  { format: 'int4', label: 'int4: a quarter, less exact' },
];

interface Setting {
  key: SettingKey;
  label: string;
  placeholder: string;
  step: string;
  help: string;
  isWhole: boolean;
  min: number;
}

/** The fields, in their order on the page; placeholders are the server's defaults (`signaling-server/src/run_request.rs`). */
export const SETTINGS: readonly Setting[] = [
  { key: 'epochs', label: 'Epochs', placeholder: '3', step: '1', help: 'Passes over the data; the first fills the cache.', isWhole: true, min: 1 },
  { key: 'batch', label: 'Samples per step', placeholder: '16', step: '1', help: 'Shared out among the devices.', isWhole: true, min: 1 },
  { key: 'learning_rate', label: 'Learning rate', placeholder: '0.001', step: 'any', help: 'Its peak; it warms up and then falls to zero.', isWhole: false, min: 0 },
  { key: 'reduction', label: 'Reduction', placeholder: 'automatic', step: '1', help: 'How many times narrower the adapter is than the model.', isWhole: true, min: 1 },
  { key: 'tap_every', label: 'Layers read', placeholder: '2', step: '1', help: '1: all of the model’s layers, 2: every second, 3: every third. Fewer make epochs shorter.', isWhole: true, min: 1 },
  { key: 'warmup_steps', label: 'Warm-up steps', placeholder: 'a tenth of all', step: '1', help: 'Steps until the learning rate peaks.', isWhole: true, min: 0 },
  { key: 'exact_match_rows', label: 'Test questions', placeholder: 'automatic', step: '1', help: 'Held-out rows answered before and after; 0 for none.', isWhole: true, min: 0 },
  { key: 'seed', label: 'Seed', placeholder: '1', step: '1', help: 'The same seed repeats a run.', isWhole: true, min: 0 },
];

/** The request, or one sentence about the first field that makes no sense. */
export function requestOf(model: string, dataset: string, texts: SettingTexts): { request: RunRequest } | { problem: string } {
  const request: RunRequest = { model, dataset };
  for (const { key, label, isWhole, min } of SETTINGS) {
    const text = texts[key]?.trim() ?? '';
    if (text === '') continue;
    const value = Number(text);
    const tooSmall = key === 'learning_rate' ? value <= 0 : value < min;
    if (!Number.isFinite(value) || tooSmall || (isWhole && !Number.isInteger(value))) {
      const wanted = isWhole ? `a whole number of at least ${min}` : 'a number above 0';
      return { problem: `${label} is ${text}, but must be ${wanted}: change it, or empty the field.` };
    }
    request[key] = value;
  }
  if (texts.weights && texts.weights !== 'keep') request.weights = texts.weights;
  return { request };
}
