"""The look of every page: system fonts, light and dark by the reader's setting, phone, paper."""

# of series, on a light page
COLOURS = ["#6b7078", "#c2571a", "#0f7b6c", "#8a4fb5", "#1f6fc4", "#a8354f", "#6f6a12", "#3d4b8f"]
LIGHT = """--ink: #1c1e21; --soft: #575d66; --rule: #d9dce1; --page: #fdfdfc; --card: #f3f4f6;
  --shade: rgb(0 0 0 / .28); --heat: 84 152 218; --mark: #1f63b0; --track: #dfe3e9;
  """ + " ".join(f"--s{i}: {colour};" for i, colour in enumerate(COLOURS))
# Text on a heat cell keeps a contrast of 4.5 or more at every share, since --heat is mixed into the card's colour.
STYLE = (
    """
:root { color-scheme: light dark; """
    + LIGHT
    + """ }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --soft: #a7adb6; --rule: #3a3f46; --page: #16181b;
  --card: #1f2226; --shade: rgb(255 255 255 / .3);
  --heat: 34 94 164; --mark: #72b1f7; --track: #33383f; --s0: #a4a9b2; --s1: #f09a5e; --s2: #4cc3ae;
  --s3: #c59bea; --s4: #72b1f7; --s5: #ef8aa2; --s6: #cfc65a; --s7: #9fb0f5; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue",
  "DejaVu Sans", Arial, sans-serif; }
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
footer { padding-top: 2rem; padding-bottom: 3rem; }
h1 { font-size: clamp(1.3rem, 1rem + 1.3vw, 1.7rem); line-height: 1.28; font-weight: 650; margin: .5rem 0 1rem;
  max-width: 48rem; text-wrap: pretty; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3.25rem 0 .5rem; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 1.5rem 0 .4rem; font-weight: 600; overflow-wrap: anywhere; }
figure h3 { margin-top: 0; }
ul.reasons { max-width: 46rem; padding-left: 1.2rem; margin: .5rem 0; }
ul.reasons li { margin: .2rem 0; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--mark); }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; border-radius: 3px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--page); padding: .5rem 1rem; z-index: 2; }
.aside { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.kicker, .note, caption, small { color: var(--soft); }
.kicker, .note { font-size: .875rem; }
.kicker { margin: 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: 1.5rem 0 0; list-style: none;
  font-size: .9rem; }
nav a { display: inline-block; padding: .25rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); gap: .75rem;
  margin: 1.4rem 0; max-width: 60rem; }
.tiles div { background: var(--card); border-radius: 8px; padding: .75rem .9rem; }
.tiles dt { color: var(--soft); font-size: .84rem; line-height: 1.35; }
.tiles dd { margin: .15rem 0 0; font-size: 1.4rem; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: .84rem; font-weight: 400; line-height: 1.4; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.1rem;
  margin: 1rem 0; align-items: start; }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.grid.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .8rem; max-width: 40rem; min-width: 0;
  break-inside: avoid; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-size: 12.5px; fill: var(--ink); }
.chart path, .key path { fill: none; stroke: var(--rule); }
.chart .axis { stroke: var(--ink); }
.chart .zero { stroke: var(--soft); }
.chart .line, .key .line { stroke: var(--series); stroke-width: 1.8; stroke-linecap: round; stroke-linejoin: round; }
.chart .dot { stroke-width: 5; }
.chart .symbol, .key .symbol { fill: var(--series); stroke: none; }
.chart .band { fill: var(--series); stroke: none; opacity: .2; }
.chart .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.chart .word { fill: var(--soft); paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
figure > svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1rem 0 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .45rem; font-size: .9rem; overflow-wrap: anywhere; }
.legend svg { width: 2.4rem; height: .8rem; flex: none; }
.scroll { overflow-x: auto;
  background: linear-gradient(90deg, var(--page) 30%, transparent) 0 0 / 2.2rem 100% no-repeat local,
  linear-gradient(270deg, var(--page) 30%, transparent) 100% 0 / 2.2rem 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) 0 0 / 1rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) 100% 0 / 1rem 100% no-repeat scroll;
  margin: 1rem 0; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding: 0 0 .4rem; font-size: .875rem; }
caption span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2.5rem); }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
th { font-weight: 600; }
th[scope=row], .text { text-align: left; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; white-space: normal; }
tbody + tbody > tr:first-child > * { border-top: 1px solid var(--rule); padding-top: .55rem; }
tbody > tr:last-child > * { padding-bottom: .55rem; }
td small { display: block; font-size: .78rem; line-height: 1.25; }
.scroll th[scope=row] { position: sticky; left: 0; background: var(--page); max-width: 14rem; overflow: hidden;
  text-overflow: ellipsis; }
.best { font-weight: 700; }
.best small { font-weight: 400; }
.pick > th::after { content: " \\2713"; color: var(--mark); }
.reach b { display: inline-block; min-width: 6.6rem; white-space: nowrap; text-align: right; font-weight: inherit; }
.reach i { display: inline-block; width: 9rem; height: .62em; margin-left: .6rem; border-radius: 2px; background:
  linear-gradient(var(--ink), var(--ink)) calc(var(--l) * 100%) 0 / 2px 100% no-repeat,
  linear-gradient(90deg, var(--mark) calc(var(--w) * 100%), var(--track) 0);
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.heat { width: 100%; font-size: .84rem; table-layout: fixed; }
.heat caption { color: var(--ink); font-weight: 600; font-size: .92rem; overflow-wrap: anywhere; }
.heat th, .heat td { padding: .28rem .15rem; text-align: center; font-weight: 400; }
.heat th { color: var(--soft); border: 0; }
.heat th[scope=row] { overflow-wrap: anywhere; white-space: normal; line-height: 1.2; }
.heat.named th:first-child { width: 7.6rem; text-align: left; }
.heat td { background: rgb(var(--heat) / var(--share)); border: 2px solid var(--card); line-height: 1.2;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; border-radius: 4px; }
.heat td.none { background: none; color: var(--soft); }
.heat small { font-size: .74rem; color: inherit; }
.facts th { color: var(--soft); font-weight: 400; padding-left: 0; vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.failures { width: 100%; }
.failures th, .failures td { vertical-align: top; }
.failures .said { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 6rem; text-align: left; }
.failures th:nth-child(n + 5) { text-align: left; }
.failures td:last-child { min-width: 14rem; width: 60%; }
pre, code, .said { font: .82rem/1.5 ui-monospace, "SF Mono", "DejaVu Sans Mono", Consolas, monospace; }
pre { background: var(--card); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; margin: .6rem 0;
  max-width: 100%; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .3rem 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { header, main, footer { padding-left: 1rem; padding-right: 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles dd { font-size: 1.2rem; } th, td { padding: .3rem .5rem; }
  .reach i { width: 5rem; } .chart text { font-size: 13px; } }
@media print { :root { color-scheme: light; """
    + LIGHT
    + """ --page: #fff; --shade: transparent; }
  body { font-size: 10pt; } header, main, footer { max-width: none; padding: 0; } header { padding-top: 0; }
  nav, .skip { display: none; } h2 { margin-top: 1.6rem; } h2, h3, summary, caption { break-after: avoid; }
  p, tr, figure, .tiles div { break-inside: avoid; } .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } table { font-size: .74rem; }
  th, td { padding: .2rem .35rem; }
  .grid, .grid.wide { grid-template-columns: repeat(2, 1fr); } .grid.narrow { grid-template-columns: repeat(3, 1fr); }
  .scroll th[scope=row] { position: static; white-space: normal; } .reach i { width: 6rem; }
  .tiles { grid-template-columns: repeat(4, 1fr); } .tiles dd { font-size: 1.1rem; }
  .failures td, td small { white-space: normal; } section > p, .legend { break-after: avoid; }
  .grid:has(.heat) { grid-template-columns: repeat(3, 1fr); }
  details:not(.long)::details-content { content-visibility: visible; block-size: auto; } }
"""
)
