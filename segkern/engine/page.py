"""The page that `segkern.engine.report` fills in: no script, no link, one style sheet inside."""

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2026; --soft: #59616d; --rule: #dfe3e8;
  --one: #1f6fd1; --two: #d4621b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2127; --ink: #e8eaed; --soft: #a3abb6; --rule: #343a43;
    --one: #6aa9f4; --two: #f0955a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 56px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 0 0 10px; }
.lead, .note, figcaption, .tile div { color: var(--soft); }
.note, small { font-size: .875rem; }
.after { margin: 12px 0 0; }
small { color: var(--soft); font-weight: 400; }
.card, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.card { padding: 16px 18px; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin-top: 20px;
}
.tile { padding: 12px 16px; }
.tile .value { color: var(--ink); font-size: 1.35rem; font-weight: 650; line-height: 1.3; }
.two {
  display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px;
  align-items: start;
}
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .9rem; margin-bottom: 10px; }
.key { display: inline-flex; align-items: center; gap: 7px; white-space: nowrap; }
.key i { width: 14px; height: 14px; border-radius: 3px; border: 1px solid var(--soft); flex: none; }
i.one { background: var(--one); } i.two { background: var(--two); }
.sample {
  display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 10px;
  margin-bottom: 14px;
}
figure { margin: 0; }
figure img {
  display: block; width: 100%; height: auto; border-radius: 6px;
  border: 1px solid var(--rule);
}
.truth img, .prediction img { image-rendering: pixelated; }
figcaption { font-size: .85rem; padding-top: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; }
thead th { color: var(--soft); font-size: .875rem; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: middle; }
tbody tr:last-child > * { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; white-space: nowrap; }
.bar { width: 38%; }
.bar div { background: var(--rule); border-radius: 4px; height: 10px; overflow: hidden; }
.bar b { display: block; height: 100%; background: var(--one); }
.facts th { width: 42%; color: var(--soft); vertical-align: top; }
.facts td { overflow-wrap: anywhere; }
.facts { font-size: .9rem; }
.scroll { overflow-x: auto; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .line.one { stroke: var(--one); } .chart .line.two { stroke: var(--two); }
.chart .dot.one { fill: var(--one); } .chart .dot.two { fill: var(--two); }
details summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: 8px; }
@media (max-width: 720px) {
  main { padding: 20px 14px 40px; }
  h1 { font-size: 1.4rem; }
  h2 { margin-top: 30px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .two { grid-template-columns: minmax(0, 1fr); }
  .sample { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; margin-bottom: 20px; }
  .sample .photo { grid-column: 1 / -1; }
  .card { padding: 14px; }
  .bar { width: 28%; }
  th, td { padding-right: 7px; }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
<div class="tiles">$tiles</div>

<h2>Pictures</h2>
<div class="legend">$legend</div>
$pictures
<p class="note">$note</p>

<h2>Training</h2>
<div class="two">$curves</div>

<h2>Figures</h2>
<div class="two">
<div class="card"><h3>Over the whole set</h3>
<table><tbody>$figures</tbody></table>
<p class="note after">$protocol</p></div>
<div class="card"><h3>$heading</h3>
<table><thead><tr><th>class</th><th></th>$columns</tr>
</thead>
<tbody>$classes</tbody></table></div>
</div>

<h2>Kernel speed on this machine</h2>
<div class="card">$speed</div>

<h2>How it was made</h2>
<div class="two">
<div class="card"><h3>Settings</h3><table class="facts"><tbody>$settings</tbody></table></div>
<div class="card"><h3>Versions and machine</h3>
<table class="facts"><tbody>$environment</tbody></table></div>
</div>
</main>
</body>
</html>
""")
