// The memory of a step: areas by category, lines of the most during each operation, phases, and what is held where the reader points.
const chosen = {rank: 0, areas: 'measured', across: 'operations', from: 'zero', cursor: null};
const stepPlot = document.getElementById('plot-timeline');
const cursor = document.getElementById('cursor');

function shown() { const rank = data.ranks[chosen.rank]; return (chosen.areas === 'measured' && rank.measured) || rank.predicted; }
function other() { const rank = data.ranks[chosen.rank]; return shown() === rank.predicted ? rank.measured : rank.predicted; }

/** Where what is drawn of each operation begins, and after the last where it ends. */
function edges(found) {
  if (chosen.across === 'time') return [...found.starts, found.ends.at(-1)].map((each) => each / 1e9 / found.unit.size);
  return [...found.at.map((_, place) => place * found.stride), found.operations];
}
function held(values, unit) { const scaled = values.map((each) => each / unit.size); scaled.push(scaled.at(-1)); return scaled; }

function areas(found, x, unit) {
  let below = found.live.map(() => 0);
  return found.categories.map((category, place) => {
    below = below.map((each, at) => each + found.stacks[place][at]);
    return {x, y: held(below, unit), name: category, mode: 'lines', line: {width: 0, shape: 'hv'}, fill: place ? 'tonexty' : 'tozeroy', hoverinfo: 'skip',
      ...styleOf(category)};
  });
}

function phaseScale(opacity) {
  const faint = Math.round(opacity * 255).toString(16).padStart(2, '0');
  return data.phases.flatMap((_, place) => [0, 1].map((side) => [(place + side) / data.phases.length, colour('--p' + place) + faint]));
}
function phases(found, x, row, opacity) {
  const z = found.phases.map((phase) => { const place = data.phases.indexOf(phase); return place < 0 ? null : place; });
  return {type: 'heatmap', x, y: [0, 1], z: [z], zmin: -.5, zmax: data.phases.length - .5, colorscale: phaseScale(opacity), showscale: false, yaxis: row, hoverinfo: 'skip'};
}
function again(found, x) {
  const red = colour('--d6');
  return {type: 'heatmap', x, y: [1.15, 2], z: [found.recomputed.map((each) => each ? 1 : null)], zmin: 0, zmax: 1, colorscale: [[0, red], [1, red]],
    showscale: false, yaxis: 'y3', hoverinfo: 'skip'};
}

function line(found, x, unit, name, style) {
  return {x, y: held(found.inside, unit), name, mode: 'lines', hoverinfo: 'skip', line: {shape: 'hv', color: colour('--ink'), ...style}};
}
function targets(found, x, unit) {
  const text = found.labels.map((label, at) => `<b>${plain(label)}</b>` + (found.layers[at] ? `<br>layer ${plain(found.layers[at])}` : '') +
    `<br>${bytes(found.inside[at])} during, ${bytes(found.live[at])} after`);
  return {x: found.at.map((_, at) => (x[at] + x[at + 1]) / 2), y: found.inside.map((each) => each / unit.size), text, mode: 'markers', marker: {opacity: 0, size: 8},
    hovertemplate: '%{text}<extra></extra>', name: 'operations'};
}

/** Names of phases over those that are wide enough. */
function phaseNames(found, x) {
  const whole = (x.at(-1) - x[0]) || 1, room = narrow() ? .22 : .07, names = [];
  for (let first = 0, at = 1; at <= found.phases.length; at++) {
    if (at < found.phases.length && found.phases[at] === found.phases[first]) continue;
    if ((x[at] - x[first]) / whole > room)
      names.push({x: (x[first] + x[at]) / 2, y: 1, yref: 'paper', yanchor: 'bottom', text: plain(found.phases[first]), showarrow: false, font: {size: 11, color: colour('--soft')}});
    first = at;
  }
  return names;
}

function drawTimeline() {
  const found = shown(), second = other(), budget = data.frontier.budget;
  for (const each of [found, second]) if (each) each.unit = timeUnit(each.ends.at(-1) / 1e9);
  if (second && chosen.across === 'time') second.unit = found.unit;
  const most = Math.max(...found.inside, ...(second ? second.inside : [0])), unit = sizeUnit(most), x = edges(found);
  const bottom = chosen.from === 'zero' ? 0 : Math.min(...found.inside, ...(second ? second.inside : []));
  const top = budget && budget < 2 * most ? Math.max(budget, most) : most;
  const traces = [phases(found, x, 'y2', .16), phases(found, x, 'y3', 1), again(found, x), ...areas(found, x, unit)];
  traces.push(line(found, x, unit, chosen.areas, {width: 1}));
  if (second) traces.push(line(second, edges(second), unit, 'other', {width: 1.5, dash: 'dash', color: colour('--focus')}));
  traces.push(targets(found, x, unit));
  const names = phaseNames(found, x), peak = found.peak, where = ((x[peak] + x[peak + 1]) / 2 - x[0]) / ((x.at(-1) - x[0]) || 1);
  names.push({x: (x[peak] + x[peak + 1]) / 2, y: found.inside[peak] / unit.size, text: 'peak ' + bytes(found.inside[peak]), showarrow: true, arrowhead: 0, ax: 0, ay: -16,
    xanchor: where > .9 ? 'right' : where < .1 ? 'left' : 'center',
    arrowcolor: colour('--ink'), bgcolor: colour('--ground'), borderpad: 2, font: {size: 12}});
  const shapes = [];
  if (budget) {
    const above = top < budget;
    if (!above) shapes.push({type: 'line', xref: 'paper', x0: 0, x1: 1, y0: budget / unit.size, y1: budget / unit.size, line: {color: colour('--bad'), width: 2, dash: 'dot'}});
    names.push({xref: 'paper', x: 0, xanchor: 'left', y: (above ? top + (top - bottom) * .12 : budget) / unit.size, yanchor: above ? 'top' : 'bottom', showarrow: false,
      text: 'budget ' + bytes(budget) + (above ? ' ↑' : ''), font: {color: colour('--bad')}});
  }
  Plotly.react(stepPlot, traces, layout({
    hovermode: 'x', hoverdistance: -1, shapes, annotations: names,
    xaxis: axis({title: {text: chosen.across === 'time' ? `${found.unit.name} from the beginning of the step` : 'operation', standoff: 6}, range: [x[0], x.at(-1)], showgrid: false, anchor: 'y3'}),
    yaxis: axis({title: {text: unit.name, standoff: 6}, domain: [.13, 1], range: [bottom / unit.size, (top + (top - bottom) * .13) / unit.size], fixedrange: true, overlaying: 'y2', tickmode: 'auto'}),
    yaxis2: axis({domain: [.13, 1], range: [0, 1], fixedrange: true, visible: false}),
    yaxis3: axis({domain: [0, .1], range: [0, 2], fixedrange: true, showgrid: false, zeroline: false, showticklabels: false}),
  }), CONFIG);
  cursor.max = found.at.length - 1;
  tell(Math.min(chosen.cursor ?? found.peak, found.at.length - 1));
}

/** Puts the mark at the operation that is told of, where that is in view: a shape of the plot's own would be drawn anew with all of it. */
function mark() {
  const area = stepPlot.querySelector('.nsewdrag'), made = document.getElementById('mark'), x = edges(shown());
  if (!area) return;
  const inside = area.getBoundingClientRect(), around = stepPlot.getBoundingClientRect(), [left, right] = stepPlot.layout.xaxis.range;
  const part = ((x[chosen.cursor] + x[chosen.cursor + 1]) / 2 - left) / (right - left);
  made.hidden = !(part >= 0 && part <= 1);
  made.style.left = inside.left - around.left + part * inside.width + 'px';
  made.style.top = inside.top - around.top + 'px';
  made.style.height = inside.height + 'px';
}

/** Shows what is held at an operation. */
function tell(at) {
  chosen.cursor = at;
  const found = shown();
  cursor.value = at;
  cursor.setAttribute('aria-valuetext', `${found.at[at]}: ${found.labels[at]}, ${bytes(found.inside[at])}`);
  document.getElementById('at-cursor').replaceChildren(...readout(found, at));
  mark();
}

function element(tag, text, kind) { const made = document.createElement(tag); made.textContent = text; if (kind) made.className = kind; return made; }
function row(category, name, size, kind) {
  const made = element('tr', '', kind), head = element('th', name, 'left');
  head.scope = 'row';
  head.title = name;
  if (category) head.prepend(swatch(category));
  made.append(head, element('td', bytes(size)));
  return made;
}
function rows(caption, made) {
  const table = document.createElement('table'), body = document.createElement('tbody');
  body.append(...made);
  table.append(element('caption', caption), body);
  return table;
}
function readout(found, at) {
  const told = [found.phases[at] + (found.recomputed[at] ? ' (again)' : ''), ...(found.shards[at] < 0 ? [] : ['shard ' + found.shards[at]]),
    ...(found.stride === 1 ? [seconds((found.ends[at] - found.starts[at]) / 1e9)] : [])];
  const categories = found.categories.map((category, place) => row(category, category, found.stacks[place][at])).reverse();
  const largest = heldAt(found, at).slice(0, 6).map(([category, owner, size]) => row(category, owner || '(no layer)', size));
  return [element('h3', `${found.at[at]}  ${found.labels[at]}`), element('p', told.join(' · ') + (found.layers[at] ? ' · layer ' + found.layers[at] : '')),
    rows('After it, by category', [row('', 'the most during it', found.inside[at], 'sum'), ...categories]), rows('Largest holders after it', largest)];
}

function startTimeline() {
  drawTimeline();
  stepPlot.on('plotly_hover', (event) => { const hit = event.points.find((each) => each.data.name === 'operations'); if (hit) tell(hit.pointNumber); });
  stepPlot.on('plotly_afterplot', mark);
  cursor.addEventListener('input', () => tell(+cursor.value));
  for (const name of ['areas', 'across', 'from'])
    for (const input of document.querySelectorAll(`input[name=${name}]`))
      input.addEventListener('change', () => { chosen[name] = input.value; drawTimeline(); });
}
