// Draws a panel of the JSON with the component that Grafana draws it with.
import {
  applyFieldOverrides,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  Registry,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { BarGauge, BigValue, PanelChrome, Table, TimeSeries, VizRepeater } from '@grafana/ui';
import { lastValueFrom } from 'rxjs';

import { ask, intervalOf, seriesFrames, tableFrame } from './prometheus.js';

standardTransformersRegistry.setInit(() =>
  [
    standardTransformers.mergeTransformer,
    standardTransformers.filterFieldsByNameTransformer,
    standardTransformers.organizeFieldsTransformer,
  ].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation,
  }))
);

// What Grafana's time series has where a dashboard says nothing.
const LINE = {
  axisBorderShow: false,
  axisColorMode: 'text',
  axisGridShow: true,
  axisPlacement: 'auto',
  barAlignment: 0,
  drawStyle: 'line',
  gradientMode: 'none',
  hideFrom: { legend: false, tooltip: false, viz: false },
  lineInterpolation: 'linear',
  lineWidth: 1,
  pointSize: 5,
  scaleDistribution: { type: 'linear' },
  showPoints: 'auto',
  spanNulls: false,
  stacking: { mode: 'none', group: 'A' },
  thresholdsStyle: { mode: 'off' },
};

const CELL = { align: 'auto', cellOptions: { type: 'auto' } };

const STANDARD = ['unit', 'min', 'max', 'decimals', 'noValue', 'displayName', 'thresholds', 'color', 'mappings'];

function registryFor(config) {
  const custom = new Set(Object.keys(config.defaults.custom ?? {}));
  for (const override of config.overrides) {
    for (const { id } of override.properties) {
      if (id.startsWith('custom.')) {
        custom.add(id.slice('custom.'.length));
      }
    }
  }
  const item = (id, path, isCustom) => ({
    id,
    path,
    isCustom,
    name: id,
    process: (value) => value,
    shouldApply: () => true,
    getItemsCount: () => 0,
  });
  return new Registry(() => [
    ...STANDARD.map((id) => item(id, id, false)),
    ...[...custom].map((name) => item(`custom.${name}`, name, true)),
  ]);
}

async function framesOf(panel, prometheus, range, width) {
  const intervalMs = intervalOf(range, width);
  const asked = panel.targets.map(async (target) => {
    const result = await ask(prometheus, target, range, intervalMs);
    if (target.format === 'table') {
      return result.length ? [tableFrame(target, result, panel.targets.length === 1)] : [];
    }
    return seriesFrames(target, result, intervalMs);
  });
  const frames = (await Promise.all(asked)).flat();
  if (!panel.transformations?.length || !frames.length) {
    return frames;
  }
  return lastValueFrom(transformDataFrame(panel.transformations, frames, { interpolate: (text) => text }));
}

export async function load(panel, prometheus, range, width, theme) {
  const preset = { timeseries: LINE, table: CELL }[panel.type] ?? {};
  const fieldConfig = {
    defaults: { ...panel.fieldConfig.defaults, custom: { ...preset, ...panel.fieldConfig.defaults.custom } },
    overrides: panel.fieldConfig.overrides ?? [],
  };
  return applyFieldOverrides({
    data: await framesOf(panel, prometheus, range, width),
    fieldConfig,
    fieldConfigRegistry: registryFor(fieldConfig),
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}

function Nothing({ panel }) {
  return <div className="nothing">{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
}

function Lines({ panel, data, width, height, timeRange, starts }) {
  return (
    <TimeSeries
      frames={data}
      width={width}
      height={height}
      timeRange={timeRange}
      timeZone="utc"
      legend={panel.options.legend}
      options={panel.options}
    >
      {(config) => {
        config.addHook('draw', (plot) => drawStarts(plot, starts));
        return null;
      }}
    </TimeSeries>
  );
}

function drawStarts(plot, starts) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = '#b877d9';
  ctx.lineWidth = 2;
  ctx.setLineDash([4, 4]);
  for (const at of starts) {
    const x = plot.valToPos(at, 'x', true);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

function displayed(panel, data, theme, sparkline) {
  return getFieldDisplayValues({
    data,
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
    sparkline,
  });
}

function Figure({ panel, data, width, height, theme }) {
  const [value] = displayed(panel, data, theme, panel.options.graphMode !== 'none');
  return (
    <BigValue
      value={value.display}
      sparkline={value.sparkline}
      width={width}
      height={height}
      theme={theme}
      colorMode={panel.options.colorMode}
      graphMode={panel.options.graphMode}
      textMode={panel.options.textMode}
      text={panel.options.text}
      disableWideLayout={!panel.options.wideLayout}
      justifyMode="auto"
    />
  );
}

function Bars({ panel, data, width, height, theme }) {
  return (
    <VizRepeater
      source={data}
      getValues={() => displayed(panel, data, theme, false)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      width={width}
      height={height}
      minVizHeight={panel.options.minVizHeight}
      maxVizHeight={panel.options.maxVizHeight}
      minVizWidth={8}
      itemSpacing={10}
      renderCounter={0}
      orientation="horizontal"
      renderValue={({ value, width: barWidth, height: barHeight, alignmentFactors, count }) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          width={barWidth}
          height={barHeight}
          theme={theme}
          orientation="horizontal"
          displayMode={panel.options.displayMode}
          valueDisplayMode={panel.options.valueMode}
          namePlacement={panel.options.namePlacement}
          showUnfilled={panel.options.showUnfilled}
          alignmentFactors={count > 1 ? alignmentFactors : undefined}
          itemSpacing={10}
          lcdCellWidth={12}
        />
      )}
    />
  );
}

function Rows({ panel, data, width, height }) {
  return (
    <Table
      data={data[0]}
      width={width}
      height={height}
      columnMinWidth={60}
      initialSortBy={panel.options.sortBy}
      cellHeight={panel.options.cellHeight}
      showTypeIcons={false}
    />
  );
}

const DRAWN_BY = { stat: Figure, timeseries: Lines, bargauge: Bars, table: Rows };

export function Panel({ panel, data, width, height, ...rest }) {
  const Drawn = DRAWN_BY[panel.type];
  if (!Drawn) {
    throw new Error(`nothing here draws a panel of type ${panel.type}`);
  }
  const empty = !data.length || data.every((frame) => frame.length === 0);
  return (
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
      {(innerWidth, innerHeight) =>
        empty ? (
          <Nothing panel={panel} />
        ) : (
          <Drawn panel={panel} data={data} width={innerWidth} height={innerHeight} {...rest} />
        )
      }
    </PanelChrome>
  );
}
