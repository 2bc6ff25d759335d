// Policies, the plan, and the process's memory.
let relative = false;

/** Units of both axes: how a peak, a planned time and a measured time become numbers on them. */
function frontierAxes({policies, curve}, measured) {
  const unit = sizeUnit(Math.max(1, ...policies.map((each) => each.predicted_peak), ...measured.map(counted), ...curve.map(([size]) => size)));
  const planned = [...policies.map((each) => each.predicted_seconds), ...curve.map((each) => each[1])], seen = measured.map((each) => each.step_seconds);
  const time = relative ? {name: '× the fastest', size: 1} : timeUnit(Math.max(...planned, ...seen));
  const scale = (times) => relative ? Math.min(...times) || 1 : time.size;
  const [plannedScale, seenScale] = [scale(planned), scale(seen)];
  return {unit, time, size: (bytes) => bytes / unit.size, planned: (value) => value / plannedScale, seen: (value) => value / seenScale};
}
function counted(policy) { return policy.ledger_peak ?? policy.predicted_peak; }

/** Below it no plan is. */
function boundTrace({policies, curve}, axes) {
  const bounds = curve.length ? curve.map(([size, , bound]) => [size, bound]) : policies.map((each) => [each.predicted_peak, each.bound_seconds]);
  bounds.sort((a, b) => a[0] - b[0]);
  return {
    x: bounds.map(([size]) => axes.size(size)), y: bounds.map(([, bound]) => axes.planned(bound)), name: 'lower bound', mode: 'lines', fill: 'tozeroy',
    line: {color: colour('--soft'), dash: 'dot', width: 2, shape: 'hv'}, fillcolor: 'rgba(0,0,0,0)',
    hovertemplate: `no plan within %{x:.1f} ${axes.unit.name} is faster than %{y:.4g}<extra></extra>`,
    fillpattern: {shape: '/', fgcolor: colour('--line'), bgcolor: 'rgba(0,0,0,0)', fillmode: 'overlay', size: 8, solidity: .12},
  };
}
function curveTrace(curve, axes) {
  return {
    x: curve.map(([size]) => axes.size(size)), y: curve.map((each) => axes.planned(each[1])), text: curve.map((each) => plain(each[3])), name: 'the fastest known',
    mode: 'lines+markers', line: {color: colour('--c5'), width: 2, shape: 'hv'}, marker: {size: 4},
    hovertemplate: `within %{x:.1f} ${axes.unit.name}: %{y:.4g}, %{text}<extra></extra>`,
  };
}
/** From what was predicted of a policy to what was measured. */
function joint(policy, axes) {
  return {x: [axes.size(policy.predicted_peak), axes.size(counted(policy))], y: [axes.planned(policy.predicted_seconds), axes.seen(policy.step_seconds)], mode: 'lines',
    hoverinfo: 'skip', line: {color: colour('--soft'), width: 1}};
}
function marks(rows, x, y, axes, name, marker) {
  return {x: rows.map(x), y: rows.map(y), name, mode: 'markers', text: rows.map((each) => plain(each.policy)), marker: {size: 11, ...marker},
    hovertemplate: `<b>%{text}</b><br>${name}: %{x:.1f} ${axes.unit.name}, %{y:.4g} ${axes.time.name}<extra></extra>`};
}
function policyNames(policies, axes) {
  if (narrow()) return [];
  const top = (each) => Math.max(axes.planned(each.predicted_seconds), each.step_seconds === null ? 0 : axes.seen(each.step_seconds));
  return policies.map((each) => ({x: axes.size(each.predicted_peak), y: top(each), text: plain(shortened(each.policy, 26)), showarrow: false, yshift: 15, font: {size: 11}}));
}

function drawFrontier() {
  const {policies, curve, budget} = data.frontier, measured = policies.filter((each) => each.step_seconds !== null);
  const axes = frontierAxes(data.frontier, measured), blue = colour('--c5'), red = colour('--c9'), bad = colour('--bad');
  const x = (each) => axes.size(each.predicted_peak), y = (each) => axes.planned(each.predicted_seconds);
  const traces = [
    boundTrace(data.frontier, axes), ...(curve.length ? [curveTrace(curve, axes)] : []), ...measured.map((each) => joint(each, axes)),
    marks(policies, x, y, axes, 'predicted', {symbol: 'circle-open', color: blue, line: {color: blue, width: 2}}),
    marks(measured, (each) => axes.size(counted(each)), (each) => axes.seen(each.step_seconds), axes, 'measured', {symbol: 'diamond', color: red}),
    marks(policies.filter((each) => each.chosen), x, y, axes, 'the plan of this report', {symbol: 'star', size: 15, color: colour('--c7'), line: {color: colour('--ink'), width: 1}}),
  ];
  const annotations = policyNames(policies, axes), shapes = [];
  if (budget) {
    shapes.push({type: 'line', x0: axes.size(budget), x1: axes.size(budget), y0: 0, y1: 1, yref: 'paper', line: {color: bad, width: 2, dash: 'dot'}});
    annotations.push({x: axes.size(budget), y: 0, yref: 'paper', yanchor: 'bottom', xanchor: 'left', text: ' budget ' + bytes(budget), showarrow: false, font: {color: bad}});
  }
  Plotly.react(document.getElementById('plot-frontier'), traces, layout({
    hovermode: 'closest', shapes, annotations, xaxis: axis({title: {text: `peak of the engine, ${axes.unit.name}`, standoff: 6}}),
    yaxis: axis({title: {text: `step time, ${axes.time.name}`, standoff: 6}, rangemode: 'tozero'}),
  }), CONFIG);
}

const HOLDS = ['nothing', 'its cotangent', 'a part of its values', 'all its values', 'runs forward', 'runs backward', 'runs forward again'];
const SYMBOLS = {4: 'triangle-right', 5: 'triangle-left', 6: 'x'};

function drawPlan() {
  const {rows: digits, steps, labels} = data.cells, plot = document.getElementById('plot-plan');
  const z = digits.map((row) => [...row].map(Number)), colours = ['rgba(0,0,0,0)', ...[1, 2, 3, 4, 5, 6].map((digit) => colour('--d' + digit))];
  const height = Math.max(180, Math.min(640, 70 + 15 * steps.length));
  plot.style.height = height + 'px';
  const text = z.map((row, step) => row.map((digit, at) => `<b>${plain(labels[at])}</b><br>${plain(steps[step])}: ${HOLDS[digit]}`));
  const traces = [{
    type: 'heatmap', z, text, hoverinfo: 'text', zmin: -.5, zmax: 6.5, showscale: false, xgap: labels.length < 40 ? 1 : 0, ygap: steps.length < 60 ? 1 : 0,
    colorscale: colours.flatMap((each, place) => [0, 1].map((side) => [(place + side) / colours.length, each])),
  }];
  if (plot.clientWidth / labels.length > 6) for (const digit of [4, 5, 6]) {
    const at = z.flatMap((row, step) => row.flatMap((each, column) => each === digit ? [[column, step]] : []));
    traces.push({x: at.map(([column]) => column), y: at.map(([, step]) => step), mode: 'markers', hoverinfo: 'skip', marker: {symbol: SYMBOLS[digit], size: 6, color: '#fff', line: {width: 0}}});
  }
  const every = Math.max(1, Math.ceil(steps.length * 13 / (height - 60))), ticks = steps.map((_, step) => step).filter((step) => step % every === 0);
  Plotly.react(plot, traces, layout({
    height, hovermode: 'closest', xaxis: axis({range: [-.5, labels.length - .5], title: {text: data.cells.across > 1 ? `${data.cells.across} operations a column` : 'operation of the shard', standoff: 6}, showgrid: false, zeroline: false}),
    yaxis: axis({range: [steps.length - .5, -.5], showgrid: false, zeroline: false, tickvals: ticks, ticktext: ticks.map((step) => plain(shortened(steps[step], narrow() ? 13 : 34))), tickfont: {size: 11}, fixedrange: steps.length < 60}),
  }), CONFIG);
}

function drawSteps() {
  const plot = document.getElementById('plot-steps');
  if (!plot) return;
  const found = data.ranks[chosen.rank].process, by = found ? found.by_step : [];
  const unit = sizeUnit(Math.max(1, ...by, found && found.predicted ? found.predicted : 0));
  const shapes = found && found.predicted ? [{type: 'line', xref: 'paper', x0: 0, x1: 1, y0: found.predicted / unit.size, y1: found.predicted / unit.size, line: {color: colour('--soft'), width: 2, dash: 'dash'}}] : [];
  Plotly.react(plot, [{y: by.map((each) => each / unit.size), mode: by.length < 40 ? 'lines+markers' : 'lines', line: {color: colour('--c5')}, hovertemplate: `step %{x}: %{y:.1f} ${unit.name}<extra></extra>`, name: 'resident'}],
    layout({shapes, hovermode: 'x', xaxis: axis({title: {text: 'step', standoff: 4}, showgrid: false, zeroline: false, ...(by.length < 12 ? {dtick: 1} : {})}), yaxis: axis({title: {text: unit.name, standoff: 4}, rangemode: 'tozero'})}), CONFIG);
}

function startPlots() {
  drawFrontier();
  drawPlan();
  drawSteps();
  for (const input of document.querySelectorAll('input[name=seconds]'))
    input.addEventListener('change', () => { relative = input.value === 'relative'; drawFrontier(); });
}
