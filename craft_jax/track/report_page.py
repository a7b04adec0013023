"""The frame, the looks and the script of the report; `report` fills them.

The script draws the curves that the page carries as JSON, as SVG, and reads
them out under the pointer. Nothing is loaded from anywhere.
"""

STYLE = """
:root { --back: #fff; --text: #1c1e21; --soft: #667; --line: #ccd;
        --box: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e6e8eb; --soft: #9aa; --line: #3a3f47;
          --box: #20242a }
}
body { background: var(--back); color: var(--text); margin: 2em auto;
       max-width: 70em; padding: 0 1em; font: 15px/1.45 system-ui, sans-serif }
h2 { margin-top: 1.6em; font-size: 1.2em }
table { border-collapse: collapse }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid
         var(--line); font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
.wide { overflow-x: auto }
.verdict { background: var(--box); padding: .8em 1em; border-radius: .4em }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .2em;
       margin-right: .4em }
.samples { display: flex; gap: 1em; flex-wrap: wrap }
.samples div { flex: 1 1 18em; min-width: 0 }
pre { background: var(--box); padding: .8em; white-space: pre-wrap;
      overflow-wrap: anywhere; border-radius: .4em }
figure { margin: 1em 0 }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font-size: 12px }
.grid { stroke: var(--line); stroke-width: 1 }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3 }
.read { min-height: 1.5em; color: var(--soft);
        font-variant-numeric: tabular-nums }
.read b { color: var(--text); font-weight: 600; margin-right: 1.2em }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
{notes}
<h2>Runs</h2>
<div class="wide">{runs}</div>
<h2>What differs</h2>
<div class="wide">{differences}</div>
<h2>Curves</h2>
<p><label>against <select id="axis">{axes}</select></label>
<label><input type="checkbox" id="logx"> logarithmic x</label>
<label><input type="checkbox" id="logy"> logarithmic y</label></p>
<div id="charts"></div>
<noscript>The curves need JavaScript.</noscript>
<h2>Samples</h2>
<div class="samples">{samples}</div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""

SCRIPT = """
'use strict';
const W = 900, H = 300, LEFT = 64, RIGHT = 12, TOP = 12, BOTTOM = 30;

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

// From values to pixels and back; null where nothing can be shown.
function scale(values, from, to, log) {
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
  const slope = (to - from) / (f(high) - f(low));
  return {
    low, high,
    pixel: v => from + (f(v) - f(low)) * slope,
    value: p => back(f(low) + (p - from) / slope),
  };
}

// About five round numbers between the ends.
function ticks(low, high, log) {
  const found = [];
  if (log && high / low > 8) {
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const m of high / low > 1e4 ? [1] : [1, 2, 5]) {
        const v = m * 10 ** e;
        if (v >= low && v <= high) found.push(v);
      }
    return found;
  }
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw);
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
    found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}

function short(v) {
  if (v === null || v === undefined || !Number.isFinite(v)) return '-';
  const a = Math.abs(v);
  for (const [size, unit] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']])
    if (a >= size && a < 1e15) return +(v / size).toPrecision(4) + unit;
  return a >= 1e15 || (a && a < 1e-3) ? v.toExponential(2)
    : String(+v.toPrecision(5));
}

function lines(chart, runs, axis) {
  return chart.series.map(s => {
    const run = runs[s.run], x = places(s, run, axis);
    return x && { x, y: s.y, run, dots: s.dots, name: s.name };
  }).filter(Boolean);
}

function node(name, attributes, parent) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (parent) parent.append(made);
  return made;
}

function grid(svg, x, y, logx, logy, label) {
  for (const v of ticks(y.low, y.high, logy)) {
    const at = y.pixel(v);
    node('line', { class: 'grid', x1: LEFT, x2: W - RIGHT, y1: at, y2: at },
         svg);
    node('text', { x: LEFT - 6, y: at + 4, 'text-anchor': 'end' }, svg)
      .textContent = short(v);
  }
  for (const v of ticks(x.low, x.high, logx))
    node('text', { x: x.pixel(v), y: H - 14, 'text-anchor': 'middle' }, svg)
      .textContent = short(v);
  node('text', { x: W - RIGHT, y: H - 1, 'text-anchor': 'end' }, svg)
    .textContent = label;
}

function curve(svg, line, x, y) {
  let path = '', pen = 'M';
  line.x.forEach((v, i) => {
    const a = x.pixel(v), b = line.y[i] === null ? NaN : y.pixel(line.y[i]);
    if (!Number.isFinite(a) || !Number.isFinite(b)) { pen = 'M'; return; }
    path += pen + a.toFixed(1) + ' ' + b.toFixed(1);
    pen = 'L';
    if (line.dots)
      node('circle', { cx: a, cy: b, r: 2.5, fill: line.run.color }, svg);
  });
  node('path', { d: path, fill: 'none', stroke: line.run.color,
                 'stroke-width': line.dots ? 2 : 1.2,
                 opacity: line.dots ? 1 : 0.75 }, svg);
}

function draw(chart, data, axis, logx, logy) {
  const figure = document.createElement('figure');
  const head = document.createElement('figcaption');
  head.textContent = chart.title;
  const read = document.createElement('div');
  read.className = 'read';
  const svg = node('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img',
                            'aria-label': chart.title });
  figure.append(head, svg, read);
  const shown = lines(chart, data.runs, axis);
  const x = scale(shown.flatMap(l => l.x), LEFT, W - RIGHT, logx);
  const y = scale(shown.flatMap(l => l.y), H - BOTTOM, TOP, logy);
  if (!x || !y) { read.textContent = 'nothing on this axis'; return figure; }
  grid(svg, x, y, logx, logy, data.axes[axis]);
  for (const line of shown) curve(svg, line, x, y);
  const cursor = node('line', { class: 'cursor', y1: TOP, y2: H - BOTTOM,
                                visibility: 'hidden' }, svg);
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * W / box.width;
    const value = x.value(Math.min(Math.max(at, LEFT), W - RIGHT));
    cursor.setAttribute('x1', x.pixel(value));
    cursor.setAttribute('x2', x.pixel(value));
    cursor.setAttribute('visibility', 'visible');
    read.replaceChildren(`${data.axes[axis]} ${short(value)}:  `);
    for (const line of shown) {
      const key = document.createElement('span'), text =
        document.createElement('b');
      key.className = 'key';
      key.style.background = line.run.color;
      const i = nearest(line.x, value);
      text.textContent = `${line.run.label} ${line.name} ${short(line.y[i])}`;
      read.append(key, text);
    }
  });
  return figure;
}

function main() {
  const data = JSON.parse(document.getElementById('data').textContent);
  const get = id => document.getElementById(id);
  const redraw = () => get('charts').replaceChildren(...data.charts.map(chart =>
    draw(chart, data, get('axis').value, get('logx').checked,
         get('logy').checked)));
  for (const id of ['axis', 'logx', 'logy'])
    get(id).addEventListener('change', redraw);
  redraw();
}

if (typeof document !== 'undefined') main();
"""
