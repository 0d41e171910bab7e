// The page: one dashboard of the chart, laid out by its own grid, fed from Prometheus.
// ?dashboard=fleet&prometheus=http://127.0.0.1:9090&source=NAME&from=MS&to=MS
import { createTheme, dateTime, ThemeContext } from '@grafana/data';
import 'uplot/dist/uPlot.min.css';
import { GlobalStyles } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

import { load, Panel } from './panels.jsx';
import { ask } from './prometheus.js';

const CELL_HEIGHT = 30;
const GAP = 8;
const COLUMNS = 24;

const style = `
  body { margin: 0; }
  .page { padding: 12px 16px 16px; font-family: Inter, sans-serif; }
  .bar { display: flex; align-items: center; gap: 8px; height: 32px; margin-bottom: 10px; font-size: 14px; }
  .bar .path { opacity: 0.65; }
  .bar .rest { flex: 1; }
  .pill { border-radius: 2px; display: flex; font-size: 12px; line-height: 24px; overflow: hidden; }
  .pill span { padding: 0 8px; }
  .row { position: absolute; font-size: 16px; font-weight: 500; line-height: 30px; padding-left: 4px; }
  .spot { position: absolute; }
  .nothing { align-items: center; display: flex; height: 100%; justify-content: center; opacity: 0.65;
    padding: 0 8px; text-align: center; font-size: 13px; }
`;

async function startsOf(dashboard, prometheus, range) {
  const [annotation] = dashboard.annotations.list;
  const result = await ask(prometheus, { expr: annotation.expr }, range, 60_000);
  const times = result.flatMap(({ values }) => values.map(([seconds]) => seconds * 1000)).sort((a, b) => a - b);
  // One region for neighbouring points, as Grafana has it; its beginning is what is drawn.
  return times.filter((at, index) => index === 0 || at - times[index - 1] > 60_000);
}

function Bar({ dashboard, range, source, theme }) {
  const pill = { background: theme.colors.background.primary, border: `1px solid ${theme.colors.border.medium}` };
  return (
    <>
      <div className="bar">
        <span className="path">Dashboards ›</span>
        <b>{dashboard.title}</b>
        <span className="rest" />
        {dashboard.links.map(({ title }) => (
          <span key={title} className="pill" style={pill}>
            <span>{title}</span>
          </span>
        ))}
        <span className="pill" style={pill}>
          <span>
            {dateTime(range.from).utc().format('HH:mm')} to {dateTime(range.to).utc().format('HH:mm')} UTC
          </span>
        </span>
      </div>
      <div className="bar">
        {dashboard.templating.list.map(({ name, label, type }) => (
          <span key={name} className="pill" style={pill}>
            <span style={{ background: theme.colors.background.secondary }}>{label}</span>
            <span>{type === 'datasource' ? source : 'All'}</span>
          </span>
        ))}
      </div>
    </>
  );
}

function Page({ dashboard, drawn, theme, range, source, width, starts }) {
  const column = (width - (COLUMNS - 1) * GAP) / COLUMNS;
  const timeRange = { from: dateTime(range.from), to: dateTime(range.to), raw: { from: 'now-6h', to: 'now' } };
  const place = ({ x = 0, y = 0, w, h }) => ({
    left: x * (column + GAP),
    top: y * (CELL_HEIGHT + GAP),
    width: w * column + (w - 1) * GAP,
    height: h * CELL_HEIGHT + (h - 1) * GAP,
  });
  const bottom = Math.max(...dashboard.panels.map(({ gridPos: { y = 0, h } }) => y + h));
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <style>{style}</style>
      <div className="page" style={{ background: theme.colors.background.canvas }}>
        <Bar dashboard={dashboard} range={range} source={source} theme={theme} />
        <div style={{ height: bottom * (CELL_HEIGHT + GAP), position: 'relative' }}>
          {dashboard.panels.map((panel, index) => {
            const spot = place(panel.gridPos);
            return panel.type === 'row' ? (
              <div key={panel.id} className="row" style={spot}>
                {panel.title}
              </div>
            ) : (
              <div key={panel.id} className="spot" style={spot}>
                <Panel
                  panel={panel}
                  data={drawn[index]}
                  width={spot.width}
                  height={spot.height}
                  theme={theme}
                  timeRange={timeRange}
                  starts={starts}
                />
              </div>
            );
          })}
        </div>
      </div>
    </ThemeContext.Provider>
  );
}

async function show() {
  const query = new URLSearchParams(location.search);
  const prometheus = query.get('prometheus');
  const range = { from: Number(query.get('from')), to: Number(query.get('to')) };
  const dashboard = await (await fetch(`/dashboards/${query.get('dashboard')}.json`)).json();
  const theme = createTheme({ colors: { mode: 'dark' } });
  const width = document.documentElement.clientWidth - 32;
  const drawn = await Promise.all(
    dashboard.panels.map((panel) =>
      panel.type === 'row'
        ? []
        : load(panel, prometheus, range, Math.round((width * panel.gridPos.w) / COLUMNS), theme)
    )
  );
  const starts = await startsOf(dashboard, prometheus, range);
  const page = { dashboard, drawn, theme, range, source: query.get('source'), width, starts };
  createRoot(document.getElementById('root')).render(<Page {...page} />);
  await document.fonts.ready;
  requestAnimationFrame(() => setTimeout(() => (window.drawn = true), 1_000));
}

show().catch((error) => {
  window.failed = String(error.stack ?? error);
});
