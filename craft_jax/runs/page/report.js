// The script of the report. It draws the curves that the page carries as JSON, as
// SVG, and reads them out under the pointer or by the arrow keys. It loads nothing.
'use strict';
const HEIGHT = 280, LEFT = 60, RIGHT = 22, TOP = 8, BOTTOM = 42;
// Pixels: the read-out, and the room below which it stands under the curves.
const READ = 330, NARROW = 760;
const DASHES = { solid: '', dashed: '7 4', dotted: '2 3' };

// Places of a series by the axis: stored, or steps times what a step is worth.
function places(series, run, axis) {
  if (axis === 'seconds') return series.seconds;
  const scale = axis === 'steps' ? 1 : run[axis];
  return scale ? series.steps.map(s => s * scale) : null;
}

// Index of the value nearest to x in ascending xs.
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

// The same, or -1 where x is further out than half of a usual gap.
function within(xs, x) {
  const last = xs.length - 1, gap = last ? (xs[last] - xs[0]) / last : 0;
  return x < xs[0] - gap / 2 || x > xs[last] + gap / 2 ? -1 : nearest(xs, x);
}

// From values to pixels and back, with some room around; null where nothing
// can be shown.
function scale(values, from, to, log, room = 0) {
  const kept = values.filter(v => Number.isFinite(v) && (!log || v > 0));
  if (!kept.length) return null;
  let low = Infinity, high = -Infinity;
  for (const v of kept) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low === high) {
    const around = Math.abs(low) / 10 || 1;
    low -= log ? low / 10 : around;
    high += around;
  }
  const f = log ? Math.log10 : v => v, back = log ? v => 10 ** v : v => v;
  const margin = (f(high) - f(low)) * room;
  [low, high] = [back(f(low) - margin), back(f(high) + margin)];
  const slope = (to - from) / (f(high) - f(low));
  return {
    low, high,
    pixel: v => from + (f(v) - f(low)) * slope,
    value: p => back(f(low) + (p - from) / slope),
  };
}

// About `count` round numbers between the ends.
function ticks(low, high, log, count) {
  const found = [];
  if (log && high / low > 8) {
    const first = Math.floor(Math.log10(low)), last = Math.log10(high);
    const every = Math.ceil((last - first) / count);
    for (let e = first; e <= last; e += every)
      for (const m of 3 * (last - first) > 2 * count ? [1] : [1, 2, 5]) {
        const v = m * 10 ** e;
        if (v >= low && v <= high) found.push(v);
      }
    return found;
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power *
    (raw / power < 1.42 ? 1 : raw / power < 3.17 ? 2 : raw / power < 7.08 ? 5
      : 10);
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
    found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}

function short(v) {
  if (v === null || v === undefined || !Number.isFinite(v)) return '-';
  const a = Math.abs(v);
  for (const [size, unit] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']])
    if (a >= size && a < 1e15) return +(v / size).toPrecision(4) + unit;
  return a >= 1e15 || (a && a < 1e-4) ? v.toExponential(2)
    : String(+v.toPrecision(5));
}

// Of a figure that is read out: digits below each other.
function figureOf(v) {
  const a = Math.abs(v);
  return a >= 0.1 && a < 1000 ? v.toFixed(4) : short(v);
}

// A place on an axis; steps are counted, the others measured.
function place(v, axis) {
  return axis === 'steps' && v < 1e9 ? Math.round(v).toLocaleString('en')
    : short(v);
}

function lines(chart, runs, axis) {
  return chart.series.map(s => {
    const run = runs[s.run], x = places(s, run, axis);
    return x && { x, y: s.y, run, dots: s.dots, name: s.name };
  }).filter(Boolean);
}

function svgNode(name, attributes, parent) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (parent) parent.append(made);
  return made;
}

function node(name, parent, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function keyOf(run, parent) {
  const key = node('span', parent);
  key.className = 'key';
  key.style.borderTopColor = run.color;
  key.style.borderTopStyle = run.dash;
}

function grid(svg, x, y, width, logx, logy, label) {
  for (const v of ticks(y.low, y.high, logy, 5)) {
    const at = y.pixel(v);
    svgNode('line', { class: 'grid', x1: LEFT, x2: width - RIGHT, y1: at,
                      y2: at }, svg);
    svgNode('text', { x: LEFT - 8, y: at + 4, 'text-anchor': 'end' }, svg)
      .textContent = short(v);
  }
  const bottom = HEIGHT - BOTTOM;
  for (const v of ticks(x.low, x.high, logx, width / 110)) {
    const at = x.pixel(v);
    svgNode('line', { class: 'grid', x1: at, x2: at, y1: TOP, y2: bottom },
            svg);
    svgNode('text', { x: at, y: bottom + 17, 'text-anchor': 'middle' }, svg)
      .textContent = short(v);
  }
  svgNode('text', { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6,
                    'text-anchor': 'middle' }, svg).textContent = label;
}

function curve(svg, line, x, y, alone) {
  let path = '', pen = 'M';
  line.x.forEach((v, i) => {
    const a = x.pixel(v), b = line.y[i] === null ? NaN : y.pixel(line.y[i]);
    if (!Number.isFinite(a) || !Number.isFinite(b)) { pen = 'M'; return; }
    path += pen + a.toFixed(1) + ' ' + b.toFixed(1);
    pen = 'L';
    if (line.x.length < 2 || (line.dots && line.x.length <= 60))
      svgNode('circle', { cx: a, cy: b, r: 2.5 }, svg).style.fill =
        line.run.color;
  });
  const strong = line.dots || alone;
  const drawn = svgNode('path', {
    d: path, fill: 'none', 'stroke-width': strong ? 1.8 : 1.2,
    opacity: strong ? 1 : 0.65, 'stroke-linejoin': 'round',
    'stroke-dasharray': DASHES[line.run.dash] }, svg);
  drawn.style.stroke = line.run.color;
}

// A table of the curves: a row for each run, a column for each kind.
function readOut(shown) {
  const box = node('div'), table = node('table', box);
  box.className = 'read';
  const head = node('tr', table), at = node('th', head);
  const names = [...new Set(shown.map(line => line.name))];
  for (const name of names) node('th', head, name);
  const cells = new Map();
  for (const run of new Set(shown.map(line => line.run))) {
    const row = node('tr', table), label = node('td', row);
    keyOf(run, label);
    label.append(run.label);
    for (const name of names) {
      const line = shown.find(l => l.run === run && l.name === name);
      const cell = node('td', row);
      if (line) cells.set(line, cell);
    }
  }
  return { box, at, cells };
}

// Moves the cursor of a drawn chart: by pointer, finger or keys.
function follow(svg, shown, x, y, read, axis, title, label) {
  const stops = [...new Set(shown.flatMap(line => line.x))]
    .filter(v => Number.isFinite(x.pixel(v))).sort((a, b) => a - b);
  const cursor = svgNode('line', { class: 'cursor', y1: TOP,
                                   y2: HEIGHT - BOTTOM }, svg);
  const marks = shown.map(line => {
    const mark = svgNode('circle', { r: 4, 'stroke-width': 1.5 }, svg);
    mark.style.fill = line.run.color;
    mark.style.stroke = 'var(--back)';
    return mark;
  });
  let now = stops.length - 1;
  // The last figure of each run, until somebody asks for a place.
  function show(index, end) {
    now = Math.min(Math.max(index, 0), stops.length - 1);
    const value = stops[now], said = [];
    cursor.setAttribute('x1', x.pixel(value));
    cursor.setAttribute('x2', x.pixel(value));
    cursor.setAttribute('visibility', end ? 'hidden' : 'visible');
    read.at.textContent = end ? 'at the end' : `${label} ${place(value, axis)}`;
    shown.forEach((line, i) => {
      const at = end ? line.x.length - 1 : within(line.x, value);
      const cell = read.cells.get(line), figure = figureOf(line.y[at]);
      cell.textContent = figure;
      if (!end && at >= 0 && line.x[at] !== value)
        node('small', cell, ` at ${place(line.x[at], axis)}`);
      said.push(`${line.run.label} ${line.name} ${cell.textContent}`);
      const b = at < 0 || line.y[at] === null ? NaN : y.pixel(line.y[at]);
      const hidden = end || !Number.isFinite(b);
      marks[i].setAttribute('visibility', hidden ? 'hidden' : 'visible');
      if (hidden) return;
      marks[i].setAttribute('cx', x.pixel(line.x[at]));
      marks[i].setAttribute('cy', b);
    });
    svg.setAttribute('aria-valuenow', value);
    svg.setAttribute('aria-valuetext',
                     [read.at.textContent, ...said].join(', '));
  }
  function point(event) {
    const left = svg.getBoundingClientRect().left;
    show(nearest(stops, x.value(event.clientX - left)), false);
  }
  svg.addEventListener('pointermove', point);
  svg.addEventListener('pointerdown', point);
  svg.addEventListener('keydown', event => {
    const far = Math.max(Math.round(stops.length / 10), 1);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageDown: now - far,
                 PageUp: now + far, Home: 0, End: stops.length - 1,
                 Escape: stops.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to, event.key === 'Escape');
  });
  const names = { role: 'slider', tabindex: 0, 'aria-label': title,
                  'aria-valuemin': stops[0], 'aria-valuemax': stops.at(-1) };
  for (const key in names) svg.setAttribute(key, names[key]);
  show(now, true);
}

function draw(chart, data, axis, logx, logy, room) {
  const figure = node('figure'), label = data.axes[axis];
  node('figcaption', figure, chart.title);
  const plot = node('div', figure), narrow = room < NARROW;
  plot.className = narrow ? 'plot narrow' : 'plot';
  const width = narrow ? room : room - READ;
  const shown = lines(chart, data.runs, axis);
  const x = scale(shown.flatMap(l => l.x), LEFT, width - RIGHT, logx);
  const y = scale(shown.flatMap(l => l.y), HEIGHT - BOTTOM, TOP, logy,
                  0.04);
  if (!x || !y) {
    plot.textContent = `nothing to show against ${label}` +
      (logx || logy ? ' on a logarithmic axis' : '');
    return figure;
  }
  const svg = svgNode('svg', { width, height: HEIGHT }, plot);
  grid(svg, x, y, width, logx, logy, label);
  const alone = !shown.some(line => line.dots);
  for (const line of shown) curve(svg, line, x, y, alone);
  const read = readOut(shown);
  plot.append(read.box);
  follow(svg, shown, x, y, read, axis, chart.title, label);
  return figure;
}

function main() {
  const get = id => document.getElementById(id), charts = get('charts');
  const data = JSON.parse(get('data').textContent);
  let room = 0;
  function redraw() {
    room = charts.clientWidth;
    charts.replaceChildren(...data.charts.map(chart =>
      draw(chart, data, get('axis').value, get('logx').checked,
           get('logy').checked, room)));
    if (!data.charts.length) charts.textContent = 'No figures were logged yet.';
  }
  for (const id of ['axis', 'logx', 'logy'])
    get(id).addEventListener('change', redraw);
  window.addEventListener('resize', () => {
    if (charts.clientWidth !== room) redraw();
  });
  redraw();
}

if (typeof document !== 'undefined') main();
