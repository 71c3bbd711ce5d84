"""The style of the page: colours for light and dark screens, and for narrow ones less margin."""

from simulator.report.palette import DARK, LIGHT, Palette

_RULES = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 84rem;
  padding: 0 1rem; color: var(--ink); background: var(--ground); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.3rem; margin-top: 3rem; border-bottom: 2px solid var(--grid); }
h3 { font-size: 1.08rem; margin: 2rem 0 .4rem; } h4 { font-size: .95rem; margin: 0 0 .2rem; }
a { color: var(--c0); } code { font-size: .88em; overflow-wrap: anywhere; }
.facts, figcaption, .lead { color: var(--faint); font-size: .88rem; }
.src { font-size: .78rem; overflow-wrap: anywhere; display: block; }
.reason { max-width: 62rem; border-left: 3px solid var(--grid); padding-left: .8rem; }
.scroll { overflow-x: auto; }
.grid { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .3rem 0 1rem;
  font-size: .88rem; }
th, td { padding: .2rem .55rem; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
td.w, th.w { text-align: left; } td.w { white-space: normal; min-width: 7rem; }
figure { margin: .6rem 0; min-width: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .2rem 0; }
nav ul { columns: 20rem; padding-left: 1.2rem; } li { break-inside: avoid; }
svg.chart { width: 100%; min-width: 26rem; max-width: 52rem; height: auto; display: block; }
svg.chart text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg.chart text.l { paint-order: stroke; stroke: var(--ground); stroke-width: 3px; }
svg.chart text.f { fill: var(--faint); font-size: 10px; }
svg.chart text.t { fill: var(--faint); font-weight: 600; }
.g { stroke: var(--grid); } .a { stroke: var(--faint); fill: none; }
.m { stroke: var(--faint); stroke-dasharray: 4 3; fill: none; }
.n { stroke: var(--c); stroke-width: 1.8; fill: none; } .c { fill: var(--c); }
.b { fill: var(--c); } .b.o { fill-opacity: .45; stroke: var(--c); stroke-dasharray: 3 2; }
.n.d1 { stroke-dasharray: 6 3; } .n.d2 { stroke-dasharray: 2 3; }
.n.d3 { stroke-dasharray: 8 3 2 3; }
.b.d1, .b.d2, .b.d3 { fill-opacity: .7; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; }
.legend svg.k { width: 26px; height: 8px; margin-right: .35rem; }
@media (max-width: 40rem) { body { margin: .5rem auto; padding: 0 .6rem; } h1 { font-size: 1.3rem; }
  figure { margin: .6rem 0; } }
@media print { body { max-width: none; } }
"""


def style() -> str:
    """Everything between `<style>` and `</style>`."""
    light, dark = _variables(LIGHT), _variables(DARK)
    colours = "\n".join(f".s{number} {{ --c: var(--c{number}); }}" for number in range(8))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{colours}{_RULES}"
    )


def _variables(palette: Palette) -> str:
    named = {
        "ground": palette.ground,
        "ink": palette.ink,
        "faint": palette.faint_ink,
        "grid": palette.grid,
        **{f"c{number}": color for number, color in enumerate(palette.lines)},
    }
    return " ".join(f"--{name}: {color};" for name, color in named.items())
