//! Pictures of the pages against the mock server: `node web/dev/screenshots.mjs [DIR] [name part]`. Exits 1 when a page logs an error.

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { startMock } from './mock-server.mjs';

const out = process.argv[2] ?? 'target/web-screenshots';
const only = process.argv[3] ?? '';
await mkdir(out, { recursive: true });
const { server, origin, fragment } = await startMock({ port: 0 });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--no-first-run'],
});

const inside = async (page) => {
  await page.getByTestId('join').click();
  await page.getByTestId('counters').waitFor();
};
const scenes = [
  { name: 'empty', path: '/', scenario: 'empty' },
  { name: 'idle', path: '/', scenario: 'idle', ready: '[data-testid=plan]' },
  { name: 'fill', path: '/', scenario: 'fill', settle: 4000, act: (page) => page.locator('details.links summary').click() },
  { name: 'train', path: '/', scenario: 'train', settle: 4000 },
  { name: 'done', path: '/', scenario: 'done', ready: '[data-testid=outcome]' },
  { name: 'failed', path: '/', scenario: 'failed' },
  { name: 'many', path: '/', scenario: 'many', settle: 3000 },
  { name: 'refusal', path: '/', scenario: 'idle', noSecret: true },
  { name: 'past', path: '/', scenario: 'idle', act: async (page) => { await page.locator('.run-row').first().click(); await page.locator('.run-open .u-wrap').waitFor(); } },
  { name: 'invite', path: '/', scenario: 'fill', act: (page) => page.getByText('Invite a device').first().click() },
  { name: 'settings', path: '/', scenario: 'idle', ready: '[data-testid=plan]', act: async (page) => { await page.locator('.settings summary').click(); await page.getByTestId('setting-epochs').fill('-2'); } },
  { name: 'join', path: '/join?threads=1', scenario: 'idle', ready: '[data-testid=join]' },
  { name: 'join-in', path: '/join?threads=1', scenario: 'idle', ready: '[data-testid=join]', act: inside },
  { name: 'join-left', path: '/join?threads=1', scenario: 'idle', ready: '[data-testid=join]', act: async (page) => { await inside(page); await page.getByTestId('leave').click(); await page.getByTestId('over').waitFor(); } },
  { name: 'join-old', path: '/join', scenario: 'newer', ready: '.notice' },
  { name: 'try', path: '/try', scenario: 'done', ready: '.example-chip', act: async (page) => { await page.locator('.example-chip').last().click(); await page.getByTestId('answer').waitFor(); } },
];

let problems = 0;
for (const scene of scenes.filter(({ name }) => name.includes(only))) {
  for (const [size, viewport] of Object.entries({ phone: { width: 390, height: 844 }, laptop: { width: 1280, height: 800 } })) {
    for (const colorScheme of ['light', 'dark']) {
      await fetch(`${origin}/mock/${scene.scenario}`, { method: 'POST' });
      const context = await browser.newContext({ viewport, colorScheme, deviceScaleFactor: 1 });
      const page = await context.newPage();
      const label = `${scene.name}-${size}-${colorScheme}`;
      const complain = (text) => {
        problems += 1;
        console.error(`${label}: ${text}`);
      };
      page.on('console', (message) => message.type() === 'error' && complain(message.text()));
      page.on('pageerror', (error) => complain(error.message));
      await page.goto(`${origin}${scene.path}${scene.noSecret ? '' : fragment}`);
      try {
        await page.locator(scene.ready ?? 'h1').first().waitFor({ timeout: 8000 });
        if (scene.settle) await page.waitForTimeout(scene.settle);
        await scene.act?.(page);
        await page.waitForTimeout(300);
      } catch (error) {
        complain(error.message.split('\n')[0]);
      }
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (overflow > 0) complain(`is ${overflow} px wider than the screen`);
      await page.screenshot({ path: join(out, `${label}.png`), fullPage: scene.name !== 'invite' });
      await context.close();
    }
  }
}
await browser.close();
server.closeAllConnections();
server.close();
console.log(`${out}: ${problems === 0 ? 'no problem' : `${problems} problems`}`);
process.exitCode = problems === 0 ? 0 : 1;
