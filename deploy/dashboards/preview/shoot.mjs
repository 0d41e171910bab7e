// Takes a picture of each dashboard: node shoot.mjs PROMETHEUS ITS_NAME FROM_MS TO_MS DASHBOARDS_FOLDER PICTURES_FOLDER
import { createReadStream, existsSync } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { createServer } from 'node:http';
import { basename, extname, join, normalize } from 'node:path';

import { chromium } from 'playwright-core';
import sharp from 'sharp';

const WIDTH = 1500;
// Of this one there is a picture of what is seen without scrolling, too.
const TOP = 'fleet';
const DEADLINE_MS = 120_000;
const here = import.meta.dirname;
const [prometheus, source, from, to, dashboards, pictures] = process.argv.slice(2);

const KINDS = { '.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml', '.json': 'application/json' };

// Grafana's icons lie in its package; everything else is the page's or the chart's.
const ROOTS = {
  dashboards,
  dist: join(here, 'dist'),
  public: join(here, 'node_modules/@grafana/ui/dist/public'),
};

const server = createServer((request, response) => {
  const path = normalize(new URL(request.url, 'http://page').pathname);
  const [, first, ...rest] = path.split('/');
  const file = path === '/' ? join(here, 'index.html') : join(ROOTS[first] ?? here, ...rest);
  if ((path !== '/' && !(first in ROOTS)) || !existsSync(file)) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, { 'Content-Type': KINDS[extname(file)] ?? 'application/octet-stream' });
  createReadStream(file).pipe(response);
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu'],
});
try {
  await mkdir(pictures, { recursive: true });
  for (const file of (await readdir(dashboards)).filter((name) => name.endsWith('.json')).sort()) {
    const dashboard = basename(file, '.json');
    const page = await browser.newPage({ viewport: { width: WIDTH, height: 900 } });
    page.on('pageerror', (error) => console.error(`${dashboard}: ${error.message}`));
    if (process.env.VERBOSE) {
      page.on('console', (message) => console.error(`${dashboard}: ${message.text()}`));
      page.on('requestfailed', (request) => console.error(`${dashboard}: ${request.url()}`));
    }
    const query = new URLSearchParams({ dashboard, prometheus, source, from, to });
    await page.goto(`http://127.0.0.1:${server.address().port}/?${query}`);
    await page.waitForFunction('window.drawn || window.failed', null, { timeout: DEADLINE_MS });
    const failed = await page.evaluate('window.failed');
    if (failed) {
      throw new Error(`${dashboard}: ${failed}`);
    }
    for (const [name, fullPage] of [[dashboard, true], [`${dashboard}-top`, false]].slice(0, dashboard === TOP ? 2 : 1)) {
      const picture = await page.screenshot({ fullPage });
      // Few colours are in a dashboard: a palette holds them in a third of the bytes.
      await sharp(picture).png({ palette: true, quality: 90, effort: 10 }).toFile(join(pictures, `${name}.png`));
    }
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
}
