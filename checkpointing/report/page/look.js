// How things look in plots, and numbers for a person.
/** Patterns of areas beside their colours, by the place of a category in data.categories; report.css has the same for marks. */
const PATTERNS = {1: '/', 2: '\\', 3: '\\', 6: '.', 9: '/', 10: '\\'};

function styleOf(category) {
  const place = data.categories.indexOf(category);
  const fill = colour('--c' + place), shape = PATTERNS[place];
  const clear = 'rgba(0,0,0,0)', ground = fill === 'transparent' ? clear : fill;
  if (!shape) return {fillcolor: fill};
  return {fillcolor: ground, fillpattern: {shape, bgcolor: ground, fgcolor: colour('--hatch'), fillmode: 'overlay', size: 5, solidity: shape === '.' ? .25 : .2}};
}

function swatch(category) {
  const mark = document.createElement('i');
  mark.className = 'swatch c' + data.categories.indexOf(category);
  return mark;
}

const SIZES = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
function bytes(size) {
  let unit = 0, value = size;
  while (Math.abs(value) >= 1024 && unit < 4) { value /= 1024; unit++; }
  return unit ? value.toFixed(1) + ' ' + SIZES[unit] : Math.round(value) + ' B';
}
/** A unit for an axis up to `most` bytes: its name, and how many bytes it is. */
function sizeUnit(most) {
  let unit = 0;
  while (unit < 4 && most >= 2 * 1024 ** (unit + 1)) unit++;
  return {name: SIZES[unit], size: 1024 ** unit};
}
function timeUnit(most) { return most >= 1 ? {name: 's', size: 1} : most >= 1e-3 ? {name: 'ms', size: 1e-3} : {name: 'µs', size: 1e-6}; }
function seconds(value) { const unit = timeUnit(Math.abs(value)); return +(value / unit.size).toPrecision(3) + ' ' + unit.name; }
/** Plotly reads markup and formulas in texts: none of ours is any. */
function plain(text) { return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/\$/g, '&#36;'); }
/** A long path by its first and last name, else by its ends. */
function shortened(text, most) {
  if (text.length <= most) return text;
  const names = text.split('.'), ends = names[0] + '…' + names.at(-1);
  if (names.length > 2 && ends.length <= most) return ends;
  return text.slice(0, Math.ceil(most / 3)) + '…' + text.slice(text.length - Math.floor(most * 2 / 3) + 1);
}

const CONFIG = {displayModeBar: false, responsive: true, doubleClick: 'reset'};
function narrow() { return innerWidth < 640; }
function axis(more) {
  const line = colour('--line');
  return {gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, ticks: '', ...more};
}
function layout(more) {
  const clear = 'rgba(0,0,0,0)';
  return {
    template: {}, margin: {l: 8, r: 8, t: 18, b: 8, pad: 0}, paper_bgcolor: clear, plot_bgcolor: clear, showlegend: false,
    font: {family: 'system-ui, sans-serif', size: 12, color: colour('--ink')}, dragmode: narrow() ? false : 'zoom',
    hoverlabel: {bgcolor: colour('--panel'), bordercolor: colour('--line'), font: {color: colour('--ink')}, align: 'left'}, ...more,
  };
}
