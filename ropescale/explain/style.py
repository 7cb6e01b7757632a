"""The look of the page: system fonts, light and dark by the reader's setting, phone, paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #575d66; --rule: #d9dce1; --page: #fdfdfc; --card: #f3f4f6;
  --shade: rgb(0 0 0 / .28);
  --mark: #1f63b0; --s0: #6b7078; --s1: #c2571a; --s2: #0f7b6c; --s3: #8a4fb5; --s4: #1f6fc4; --s5: #a8354f;
  --s6: #6f6a12; --s7: #3d4b8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --soft: #a7adb6; --rule: #3a3f46; --page: #16181b;
  --card: #1f2226; --shade: rgb(255 255 255 / .3);
  --mark: #72b1f7; --s0: #a4a9b2; --s1: #f09a5e; --s2: #4cc3ae; --s3: #c59bea; --s4: #72b1f7;
  --s5: #ef8aa2; --s6: #cfc65a; --s7: #9fb0f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue",
  "DejaVu Sans", Arial, sans-serif; }
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
footer { padding-top: 1rem; padding-bottom: 3rem; }
h1 { font-size: clamp(1.3rem, 1rem + 1.3vw, 1.7rem); line-height: 1.28; font-weight: 650; margin: .5rem 0 1rem;
  max-width: 48rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.kicker, .note, caption, small { color: var(--soft); font-size: .875rem; }
.kicker { margin: 0; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; border-radius: 3px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); gap: .75rem;
  margin: 1.4rem 0; }
.tiles div { background: var(--card); border-radius: 8px; padding: .75rem .9rem; }
.tiles dt { color: var(--soft); font-size: .84rem; line-height: 1.35; }
.tiles dd { margin: .15rem 0 0; font-size: 1.3rem; font-weight: 650; line-height: 1.3; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: .84rem; font-weight: 400; line-height: 1.4; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.1rem;
  margin: 1rem 0; align-items: start; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .8rem; max-width: 32rem; min-width: 0;
  break-inside: avoid; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12.5px; fill: var(--ink); }
svg path { fill: none; stroke: var(--rule); }
svg .axis { stroke: var(--ink); }
svg .zero { stroke: var(--soft); }
svg .line { stroke: var(--series); stroke-width: 1.8; stroke-linecap: round; stroke-linejoin: round; }
svg .dot { stroke-width: 5; }
svg .band { fill: var(--series); stroke: none; opacity: .2; }
svg .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .word { fill: var(--soft); paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: .6rem 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .45rem; font-size: .9rem; overflow-wrap: anywhere; }
.legend svg { width: 2.4rem; height: .8rem; flex: none; }
.scroll { overflow-x: auto;
  background: linear-gradient(90deg, var(--page) 30%, transparent) 0 0 / 2.2rem 100% no-repeat local,
  linear-gradient(270deg, var(--page) 30%, transparent) 100% 0 / 2.2rem 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) 0 0 / 1rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) 100% 0 / 1rem 100% no-repeat scroll;
  margin: .6rem 0; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding: 0 0 .4rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
th { font-weight: 600; }
th:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; white-space: normal; }
summary { cursor: pointer; padding: .3rem 0; font-size: .875rem; }
@media (max-width: 34rem) { header, main, footer { padding-left: 1rem; padding-right: 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles dd { font-size: 1.15rem; } th, td { padding: .3rem .5rem; }
  svg text { font-size: 13px; } }
@media print { body { font-size: 10pt; } h2, h3, summary, caption { break-after: avoid; } }
"""
