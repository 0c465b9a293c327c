"""The page of a benchmark: one file, no scripts, readable in light and dark, wide and narrow."""

from typing import TYPE_CHECKING

from xgradcheck import _bench_text as told
from xgradcheck._errors import lacks

if TYPE_CHECKING:
    from xgradcheck._bench_report import BenchReport

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.name }}: {{ report.verdict }}</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#d8dce2, #3a3f47);
  --dim: light-dark(#5b6470, #9aa4b1); --good: light-dark(#18794e, #4cc38a);
  --bad: light-dark(#c62a2f, #ff6369); --open: light-dark(#946800, #f0c000);
  --forward: light-dark(#3b82f6, #60a5fa); --backward: light-dark(#a855f7, #c084fc); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.dim, footer { color: var(--dim); font-size: .9rem; }
.PASS { color: var(--good); } .FAIL { color: var(--bad); } .INCONCLUSIVE { color: var(--open); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
th { font-weight: 600; } tr.fastest td:first-child { font-weight: 700; }
td.reason { white-space: normal; text-align: left; color: var(--dim); min-width: 18rem; }
.bar { display: flex; height: .35rem; min-width: 8rem; } .bar i { display: block; }
i.f { background: var(--forward); } i.b { background: var(--backward); }
span.f { color: var(--forward); } span.b { color: var(--backward); }
ul { padding-left: 1.2rem; }
</style>
</head>
<body>
<h1><span class="{{ report.verdict }}">{{ report.verdict }}</span> {{ report.name }}</h1>
<p class="dim">{{ headline }} · {{ report.device }}</p>
{% for place, rows in places %}
<h2>{{ place }}</h2>
<div class="scroll"><table>
<thead><tr><th>implementation</th><th>verdict</th><th>error</th><th>forward</th><th>backward</th>
<th>both</th><th>beside</th><th>memory</th></tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.beside == "fastest" %} class="fastest"{% endif %}>
<td>{{ row.record.name }}</td>
<td class="{{ row.record.verdict }}">{{ row.record.verdict }}</td>
{% if row.record.both %}
<td>{{ row.error }}</td>
<td><span class="f">{{ row.forward }}</span></td><td><span class="b">{{ row.backward }}</span></td>
<td>{{ row.both }}<div class="bar"><i class="f" style="width:{{ row.shares[0] }}%"></i><i class="b"
style="width:{{ row.shares[1] }}%"></i></div></td>
<td>{{ row.beside }}</td><td>{{ row.memory }}</td>
{% else %}
<td>{{ row.error }}</td><td class="reason" colspan="5">{{ row.record.reason }}</td>
{% endif %}
</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
{% if report.notes %}
<ul>{% for note in report.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endif %}
<footer><p>{{ "%.2g" | format(report.elapsed_s) }} s, seed {{ report.seed }}. Times are medians with
half of the distance between the quartiles; errors are in units of that of the reference run in the
same dtype; no time is told of what is not right.</p>
<p>{{ environment | join(" · ") }}</p></footer>
</body>
</html>
"""


def page(report: "BenchReport") -> str:
    """The page as text."""
    try:
        import jinja2
    except ModuleNotFoundError:
        raise lacks("a page", "jinja2", "report") from None
    places: dict[str, list[dict[str, object]]] = {}
    slowest = max((r.both.median for r in report.records if r.both), default=1.0)
    for record in report.records:
        parts = (record.forward, record.backward)
        row = {
            "record": record,
            "error": told.error(record),
            "forward": told.times(record.forward),
            "backward": told.times(record.backward),
            "both": told.times(record.both),
            "beside": told.beside(record, report.fastest(record.dtype, record.shape)),
            "memory": told.memory(record.peak_bytes),
            "shares": [f"{100 * part.median / slowest:.2f}" if part else "0" for part in parts],
        }
        places.setdefault(record.place, []).append(row)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(PAGE)
    return template.render(
        report=report,
        places=places.items(),
        headline=told.headline(report),
        environment=[f"{name} {value}" for name, value in report.environment.items()],
    )
