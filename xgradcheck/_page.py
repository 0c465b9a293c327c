"""The templates of the page: its style, its one script, which sorts tables, and its parts."""

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#ffffff, #15171b);
  --card: light-dark(#f7f8fa, #1c1f24); --ink: light-dark(#1a1d21, #e6e8eb);
  --dim: light-dark(#5b6470, #9aa4b1); --line: light-dark(#d8dce2, #3a3f47);
  --good: light-dark(#18794e, #4cc38a); --bad: light-dark(#c62a2f, #ff6369);
  --open: light-dark(#8a6100, #f0c000); --mark: light-dark(#2563eb, #7ab0ff); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink);
  max-width: 72rem; margin: 0 auto; padding: 2rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
a { color: inherit; } code { font: .92em ui-monospace, monospace; }
.dim, footer, figcaption { color: var(--dim); font-size: .9rem; }
.PASS { color: var(--good); } .FAIL, .ERROR { color: var(--bad); }
.INCONCLUSIVE { color: var(--open); } .SKIPPED { color: var(--dim); }
.badge { font-size: .8em; font-weight: 700; letter-spacing: .02em; padding: .12em .55em;
  border: 1.5px solid currentColor; border-radius: .4em; margin-right: .4em; white-space: nowrap; }
.lead { margin: .4rem 0 0; font-size: 1.05rem; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1.2rem 0 0; padding: 0; }
.facts div { background: var(--card); border-radius: .5rem; padding: .5rem .8rem;
  min-width: 6.5rem; }
.facts dt { color: var(--dim); font-size: .78rem; } .facts dd { margin: 0; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .95rem; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th.t, td.t { text-align: left; } td.wide { white-space: normal; min-width: min(14rem, 30vw);
  }
th { font-weight: 600; } thead th { position: relative; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
th button::after { content: ""; display: inline-block; width: .9em; text-align: center; }
th[aria-sort="ascending"] button::after { content: "\\2191"; }
th[aria-sort="descending"] button::after { content: "\\2193"; }
.leaf { background: var(--card); border-left: 4px solid var(--bad); border-radius: .4rem;
  padding: .9rem 1.1rem 1.1rem; margin: 1rem 0; }
.leaf.INCONCLUSIVE { border-color: var(--open); color: inherit; }
.leaf.FAIL { color: inherit; } .leaf.PASS { border-color: var(--good); color: inherit; }
.leaf p { margin: .45rem 0 0; } .cause { font-weight: 600; }
.worst { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .5rem 1rem;
  margin: .8rem 0 0; }
.worst dt { color: var(--dim); font-size: .78rem; } .worst dd { margin: 0; font-size: .95rem;
  font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1rem; margin-top: 1rem; }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, sans-serif; }
figcaption { font-size: .85rem; margin-bottom: .2rem; }
ul { padding-left: 1.2rem; margin: .4rem 0; } li { margin: .2rem 0; }
.grid { display: flex; flex-wrap: wrap; gap: 3px; } .grid i { width: 1rem; height: 1rem;
  border-radius: .2rem; background: currentColor; } .grid i.SKIPPED { opacity: .35; }
details > summary { cursor: pointer; } details { margin-top: .6rem; }
section + section { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 2rem; }
.env { columns: 18rem; font-size: .88rem; color: var(--dim); padding: 0; list-style: none; }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)], [p, q] = [Number(x), Number(y)];
      const known = x !== "" && y !== "" && !Number.isNaN(p) && !Number.isNaN(q);
      return known ? p - q : x.localeCompare(y, undefined, { numeric: true });
    });
    body.append(...(down ? rows.reverse() : rows));
  }));
}
"""

MACROS = """
{% macro sortable(columns) %}
<thead><tr>{% for name, left in columns %}<th scope="col"{% if left %} class="t"{% endif %}>
<button type="button">{{ name }}</button></th>{% endfor %}</tr></thead>
{% endmacro %}

{% macro badge(verdict) %}<span class="badge {{ verdict }}">{{ verdict }}</span>{% endmacro %}

{% macro listed(items) %}
{% if items %}
<ul>{% for item in items[:most] %}<li>{{ item }}</li>{% endfor %}</ul>
{% if items | length > most %}<details><summary>{{ items | length - most }} more</summary>
<ul>{% for item in items[most:] %}<li>{{ item }}</li>{% endfor %}</ul></details>{% endif %}
{% endif %}
{% endmacro %}

{% macro leaf_card(card) %}
<article class="leaf {{ card.leaf.verdict }}">
<h3>{{ badge(card.leaf.verdict) }}{{ card.leaf.name }} <span class="dim">{{ card.shape }},
{{ card.leaf.dtype }}</span></h3>
{% for cause in card.causes %}<p class="cause">{{ cause }}</p>{% endfor %}
{% for text in card.said %}<p>{{ text }}</p>{% endfor %}
{% if card.worst %}
<dl class="worst">{% for name, value in card.worst %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd>
</div>{% endfor %}</dl>
{% endif %}
{% if card.figures %}
<div class="figures">{% for title, svg in card.figures.items() %}
<figure role="img" aria-label="{{ title }}"><figcaption>{{ title }}</figcaption>{{ svg | safe }}
</figure>{% endfor %}</div>
{% if card.kept %}<p class="dim">{{ card.kept }}</p>{% endif %}
{% endif %}
</article>
{% endmacro %}

{% macro leaves(one) %}
{% if one.rows %}
<h2>Leaves</h2>
<div class="scroll"><table class="sortable">
{{ sortable([("leaf", 1), ("shape", 1), ("judged", 1), ("verdict", 1), ("distance", 0),
  ("grade", 1), ("floor", 0), ("wrong", 0)]) }}
<tbody>{% for row in one.rows %}
<tr><td class="t wide">{{ row.name }}</td><td class="t">{{ row.shape }}</td>
<td class="t">{{ row.judged }}</td><td class="t {{ row.verdict }}">{{ row.verdict }}</td>
<td data-key="{{ row.distance_key }}">{{ row.distance }}</td><td class="t">{{ row.grade }}</td>
<td data-key="{{ row.floor_key }}">{{ row.floor }}</td>
<td data-key="{{ row.wrong_key }}">{{ row.wrong }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="dim">Distance is ‖g &minus; t‖ / (‖g‖ + ‖t‖); the floor is the smallest relative error
of the leaf that this run would have seen.</p>
{% endif %}
{% endmacro %}

{% macro probes(one) %}
{% if one.probes %}
<h2>Probes</h2>
<div class="scroll"><table>
<thead><tr><th class="t">probe</th><th class="t">verdict</th><th class="t">what has to hold</th>
<th class="t">trials</th></tr></thead>
<tbody>{% for probe in one.probes %}
<tr><td class="t">{{ probe.name }}</td><td class="t {{ probe.verdict }}">{{ probe.verdict }}</td>
<td class="t wide">{{ probe.holds }}{% for text in probe.said %}<br><span
class="{{ probe.verdict }}">{{ text }}</span>{% endfor %}</td>
<td class="t"><div class="grid" role="list">{% for trial, verdict in probe.trials %}
{% set told = trial ~ ": " ~ verdict %}
<i role="listitem" class="{{ verdict }}" title="{{ told }}" aria-label="{{ told }}"></i>
{% endfor %}</div></td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% endmacro %}

{% macro body(one, heading) %}
<{{ heading }}>{{ badge(one.report.verdict) }}{{ one.title }}</{{ heading }}>
<p class="lead">{{ one.headline }}</p>
<dl class="facts">{% for name, value in one.facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd>
</div>{% endfor %}</dl>
{% for card in one.cards %}{{ leaf_card(card) }}{% endfor %}
{% if one.uncarded %}<p class="dim">{{ one.uncarded }}</p>{% endif %}
{{ probes(one) if one.probes_first }}
{{ leaves(one) }}
{{ probes(one) if not one.probes_first }}
{% if one.findings %}<h2>Findings</h2>{{ listed(one.findings) }}{% endif %}
{% if one.notes %}<h2>Notes</h2>{{ listed(one.notes) }}{% endif %}
{% if one.report.replay %}<h2>Again</h2><p><code>{{ one.report.replay }}</code></p>{% endif %}
{% endmacro %}
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{% import "macros" as m with context %}
{% if is_one %}
<main>{{ m.body(shown[0], "h1") }}</main>
{% else %}
<header><h1>{{ m.badge(verdict) }}{{ title }}</h1><p class="lead">{{ counts }}</p></header>
<main>
<div class="scroll"><table class="sortable">
{{ m.sortable([("case", 1), ("verdict", 1), ("distance", 0), ("floor", 0), ("evaluations", 0),
  ("seconds", 0), ("what was found", 1)]) }}
<tbody>{% for one in shown %}
<tr><td class="t wide"><a href="#r{{ loop.index }}">{{ one.title }}</a></td>
<td class="t {{ one.report.verdict if not one.remark.startswith("as") }}">{{ one.report.verdict }}
{{ one.remark }}</td>
<td data-key="{{ one.distance_key }}">{{ one.distance }}</td>
<td data-key="{{ one.floor_key }}">{{ one.floor }}</td><td>{{ one.report.evaluations }}</td>
<td data-key="{{ one.report.elapsed_s }}">{{ "%.2g" | format(one.report.elapsed_s) }}</td>
<td class="t wide">{{ one.brief }}</td></tr>
{% endfor %}
{% for name, why in faults %}
<tr><td class="t wide">{{ name }}</td><td class="t FAIL">ERROR</td><td data-key="">-</td>
<td data-key="">-</td><td data-key="">-</td><td data-key="">-</td>
<td class="t wide">{{ why }}</td></tr>
{% endfor %}</tbody></table></div>
{% for one in shown %}<section id="r{{ loop.index }}">{{ m.body(one, "h2") }}</section>{% endfor %}
</main>
{% endif %}
<footer><details><summary>Environment</summary><ul class="env">{% for name, value in environment %}
<li>{{ name }} {{ value }}</li>{% endfor %}</ul></details></footer>
<script>{{ script | safe }}</script>
</body>
</html>
"""
