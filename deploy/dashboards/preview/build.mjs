// Bundles the page: node build.mjs
import { build } from 'esbuild';

await build({
  entryPoints: ['src/main.jsx'],
  outfile: 'dist/main.js',
  bundle: true,
  jsx: 'automatic',
  // As Grafana's own bundler reads them: in their .mjs files, default imports of older modules would be wrapped twice.
  alias: {
    '@grafana/data': './node_modules/@grafana/data/dist/cjs/index.cjs',
    '@grafana/ui': './node_modules/@grafana/ui/dist/cjs/index.cjs',
  },
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  // Fonts of an editor that no panel has.
  loader: { '.ttf': 'empty' },
  logLevel: 'warning',
});
