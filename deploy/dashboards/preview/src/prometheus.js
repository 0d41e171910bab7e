// Asks Prometheus as Grafana's data source does, and gives data frames.
import { FieldType, rangeUtil, toDataFrame } from '@grafana/data';

// Of the history that is looked at.
const SCRAPE_MS = 30_000;

export function filled(expr, range, intervalMs) {
  const words = {
    __rate_interval: `${Math.max(intervalMs + SCRAPE_MS, 4 * SCRAPE_MS) / 1000}s`,
    __range: `${Math.round((range.to - range.from) / 1000)}s`,
    __interval: `${intervalMs / 1000}s`,
  };
  // What is no built-in is a variable for which all was chosen.
  return expr.replace(/\$\{?(\w+)\}?/g, (_, name) => words[name] ?? '.*');
}

export function intervalOf(range, points) {
  return Math.max(rangeUtil.roundInterval((range.to - range.from) / points), SCRAPE_MS);
}

export async function ask(base, target, range, intervalMs) {
  const query = new URLSearchParams({ query: filled(target.expr, range, intervalMs) });
  if (target.instant) {
    query.set('time', range.to / 1000);
  } else {
    // Aligned to the step, so that bars and stacks stand still from one look to the next.
    query.set('start', (Math.floor(range.from / intervalMs) * intervalMs) / 1000);
    query.set('end', range.to / 1000);
    query.set('step', intervalMs / 1000);
  }
  const answer = await fetch(`${base}/api/v1/${target.instant ? 'query' : 'query_range'}?${query}`);
  const body = await answer.json();
  if (body.status !== 'success') {
    throw new Error(`${target.expr}: ${body.error}`);
  }
  return body.data.result;
}

const number = (text) => {
  const value = Number(text);
  return Number.isNaN(value) ? null : value;
};

function named(target, labels) {
  if (target.legendFormat && target.legendFormat !== '__auto') {
    return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
  }
  const { __name__, ...rest } = labels;
  const values = Object.values(rest);
  return values.length === 1 ? values[0] : values.length ? JSON.stringify(rest) : target.expr;
}

export function seriesFrames(target, result, intervalMs) {
  return result.map((series) => {
    const pairs = series.values ?? [series.value];
    return toDataFrame({
      refId: target.refId,
      fields: [
        {
          name: 'Time',
          type: FieldType.time,
          config: { interval: intervalMs },
          values: pairs.map(([seconds]) => seconds * 1000),
        },
        {
          name: 'Value',
          type: FieldType.number,
          config: { displayNameFromDS: named(target, series.metric) },
          values: pairs.map(([, value]) => number(value)),
        },
      ],
    });
  });
}

export function tableFrame(target, result, single) {
  const labels = [...new Set(result.flatMap((series) => Object.keys(series.metric)))].filter(
    (name) => name !== '__name__'
  );
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: result.map(({ value }) => value[0] * 1000) },
      ...labels.map((name) => ({
        name,
        type: FieldType.string,
        values: result.map(({ metric }) => metric[name] ?? ''),
      })),
      {
        name: single ? 'Value' : `Value #${target.refId}`,
        type: FieldType.number,
        values: result.map(({ value }) => number(value[1])),
      },
    ],
  });
}
