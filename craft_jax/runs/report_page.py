"""The frame and the looks of the report; `report` fills it."""

from craft_jax.runs.plot import COLORS

# Lighter ones of the same order on a dark page.
DARK = (
  '#4aa8e8', '#ff8a3d', '#2fc99b', '#e79cc8', '#f0b429', '#8fd3f7', '#c7a36b',
  '#b0b0b0',
)  # fmt: skip


def _variables(colors: tuple[str, ...]) -> str:
  return '; '.join(f'--c{i}: {color}' for i, color in enumerate(colors))


STYLE = (
  (
    """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21;
        --soft: #5b6168; --line: #d5d8dd; --box: #f4f5f7; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e6e8eb; --soft: #a3abb5; --line: #353a42;
          --box: #20242a; DARK }
}
* { box-sizing: border-box }
body { background: var(--back); color: var(--text); margin: 2em auto;
       max-width: 72em; padding: 0 1em; font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5em; overflow-wrap: anywhere }
h2 { margin-top: 1.8em; font-size: 1.2em }
h3 { font-size: 1em }
table { border-collapse: collapse }
td, th { padding: .2em .8em; text-align: right; vertical-align: top;
         border-bottom: 1px solid var(--line); white-space: nowrap;
         font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
.wide { overflow-x: auto }
.long { display: inline-block; width: 15em; white-space: normal;
        overflow-wrap: anywhere; vertical-align: top }
.flag { white-space: nowrap }
.verdict { background: var(--box); padding: .8em 1em; border-radius: .4em }
.key { display: inline-block; width: 1.4em; border-top: .25em solid;
       margin-right: .5em; vertical-align: middle }
.controls { position: sticky; top: 0; z-index: 1; background: var(--back);
            display: flex; flex-wrap: wrap; gap: .4em 1.4em; padding: .5em 0 }
.controls label { white-space: nowrap }
select { font: inherit }
.soft { color: var(--soft) }
figure { margin: 1em 0 2em }
figcaption { font-weight: 600; margin-bottom: .3em }
.plot { display: flex; gap: 1em; align-items: flex-start }
.plot.narrow { display: block }
svg { display: block; flex: none; touch-action: pan-y; cursor: crosshair }
svg text { fill: var(--soft); font-size: 12px }
.grid { stroke: var(--line); stroke-width: 1 }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3 }
.read { flex: 1; min-width: 0; max-height: 280px; overflow: auto;
        font-size: 13px }
.read table { width: 100% }
.read td, .read th { padding: .15em 0 .15em .7em; font-weight: normal }
.read th { color: var(--soft) }
.read td:first-child { white-space: normal; overflow-wrap: anywhere }
.read small { color: var(--soft); white-space: nowrap }
.samples { display: flex; gap: 1em; flex-wrap: wrap }
.samples div { flex: 1 1 18em; min-width: 0 }
pre { background: var(--box); padding: .8em; white-space: pre-wrap;
      overflow-wrap: anywhere; border-radius: .4em }
"""
  )
  .replace('LIGHT', _variables(COLORS))
  .replace('DARK', _variables(DARK))
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{verdict}
{notes}
<h2>Runs</h2>
<div class="wide" tabindex="0">{runs}</div>
{differences}
<h2>Curves</h2>
<div class="controls">
<label>horizontal axis <select id="axis">{axes}</select></label>
<label><input type="checkbox" id="logx"> logarithmic</label>
<label><input type="checkbox" id="logy"> vertical axis logarithmic</label>
</div>
{thinned}
<div id="charts"></div>
<noscript>The curves need JavaScript.</noscript>
{samples}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
