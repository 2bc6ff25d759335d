// Policies, the plan, and the process's memory.
let relative = false;

function drawFrontier() {
  const {policies, curve, budget} = data.frontier, plot = document.getElementById('plot-frontier');
  const measured = policies.filter((each) => each.step_seconds !== null);
  const sizes = [...policies.map((each) => each.predicted_peak), ...measured.map((each) => each.ledger_peak || 0), ...curve.map(([size]) => size)];
  const unit = sizeUnit(Math.max(1, ...sizes)), ink = colour('--ink');
  const fastest = {planned: Math.min(...policies.map((each) => each.predicted_seconds), ...curve.map((each) => each[1])), measured: Math.min(...measured.map((each) => each.step_seconds))};
  const times = [...policies.map((each) => each.predicted_seconds), ...measured.map((each) => each.step_seconds)];
  const time = relative ? {name: '× the fastest', size: 1} : timeUnit(Math.max(...times));
  const planned = (value) => value / (relative ? fastest.planned || 1 : time.size), seen = (value) => value / (relative ? fastest.measured || 1 : time.size);
  const bounds = curve.length ? curve.map(([size, , bound]) => [size, bound]) : policies.map((each) => [each.predicted_peak, each.bound_seconds]);
  bounds.sort((a, b) => a[0] - b[0]);
  const traces = [{
    x: bounds.map(([size]) => size / unit.size), y: bounds.map(([, bound]) => planned(bound)), name: 'lower bound', mode: 'lines', fill: 'tozeroy',
    line: {color: colour('--soft'), dash: 'dot', width: 2, shape: 'hv'}, fillcolor: 'rgba(0,0,0,0)', hovertemplate: 'no plan within %{x:.1f} ' + unit.name + ' is faster than %{y:.4g}<extra></extra>',
    fillpattern: {shape: '/', fgcolor: colour('--line'), bgcolor: 'rgba(0,0,0,0)', fillmode: 'overlay', size: 8, solidity: .12},
  }];
  if (curve.length) traces.push({
    x: curve.map(([size]) => size / unit.size), y: curve.map((each) => planned(each[1])), text: curve.map((each) => plain(each[3])), name: 'the fastest known', mode: 'lines+markers',
    line: {color: colour('--c5'), width: 2, shape: 'hv'}, marker: {size: 4}, hovertemplate: 'within %{x:.1f} ' + unit.name + ': %{y:.4g}, %{text}<extra></extra>',
  });
  for (const each of measured) traces.push({
    x: [each.predicted_peak / unit.size, (each.ledger_peak ?? each.predicted_peak) / unit.size], y: [planned(each.predicted_seconds), seen(each.step_seconds)], mode: 'lines', hoverinfo: 'skip',
    line: {color: colour('--soft'), width: 1},
  });
  const marks = (rows, x, y, name, symbol, fill) => ({
    x: rows.map(x), y: rows.map(y), name, mode: 'markers', text: rows.map((each) => plain(each.policy)), marker: {symbol, size: 11, color: fill, line: {color: fill, width: 2}},
    hovertemplate: `<b>%{text}</b><br>${name}: %{x:.1f} ${unit.name}, %{y:.4g} ${time.name}<extra></extra>`,
  });
  const places = policies.map((each) => [each.predicted_peak / unit.size, planned(each.predicted_seconds)]);
  traces.push(marks(policies, (each) => each.predicted_peak / unit.size, (each) => planned(each.predicted_seconds), 'predicted', 'circle-open', colour('--c5')));
  traces.push(marks(measured, (each) => (each.ledger_peak ?? each.predicted_peak) / unit.size, (each) => seen(each.step_seconds), 'measured', 'diamond', colour('--c9')));
  const star = policies.filter((each) => each.chosen);
  traces.push({...marks(star, (each) => each.predicted_peak / unit.size, (each) => planned(each.predicted_seconds), 'the plan of this report', 'star', colour('--c7')), marker: {symbol: 'star', size: 15, color: colour('--c7'), line: {color: ink, width: 1}}});
  const shapes = budget ? [{type: 'line', x0: budget / unit.size, x1: budget / unit.size, y0: 0, y1: 1, yref: 'paper', line: {color: colour('--bad'), width: 2, dash: 'dot'}}] : [];
  const annotations = narrow() ? [] : policies.map((each, at) => ({x: places[at][0], y: Math.max(places[at][1], each.step_seconds === null ? 0 : seen(each.step_seconds)), text: plain(shortened(each.policy, 26)), showarrow: false, yshift: 15, font: {size: 11}}));
  if (budget) annotations.push({x: budget / unit.size, y: 0, yref: 'paper', yanchor: 'bottom', xanchor: 'left', text: ' budget ' + bytes(budget), showarrow: false, font: {color: colour('--bad')}});
  Plotly.react(plot, traces, layout({
    hovermode: 'closest', shapes, annotations, xaxis: axis({title: {text: `peak of the engine, ${unit.name}`, standoff: 6}}),
    yaxis: axis({title: {text: relative ? 'step time, × the fastest' : `step time, ${time.name}`, standoff: 6}, rangemode: 'tozero'}),
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
