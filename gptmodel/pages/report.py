"""The report of an evaluated model as one HTML page: how it learned, how well it predicts, and what it writes.

Everything comes out of the store: manifests, and the files of the evaluation. A part that there is nothing for is left
out. Texts from outside are escaped. The same artifacts give the same page.
"""

from __future__ import annotations

from html import escape

from gptmodel.judging.surprisal import passages_of
from gptmodel.pages import report_sections as sections
from gptmodel.pages import report_texts as texts
from gptmodel.pages.frame import html_page
from gptmodel.pages.line_chart import CHART_STYLE
from gptmodel.pages.report_facts import ReportFacts
from gptmodel.pages.surprisal import MAP_SCRIPT, MAP_STYLE, map_section

_STYLE = """
main { max-width: 1120px; margin: 0 auto; }
h1 { font-size: 24px; }
h2 { font-size: 18px; margin: 34px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 18px 0 4px; }
td, th { font-variant-numeric: tabular-nums; }
td.n, th.n { text-align: right; white-space: nowrap; }
table { width: auto; min-width: min(100%, 480px); }
blockquote { margin: 0 0 18px; padding: 10px 14px; background: var(--box); border-left: 4px solid var(--line);
  border-radius: 3px; max-width: 80ch; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 24em; overflow-y: auto; font: 15px/1.6 Georgia, "Times New Roman", "DejaVu Serif", serif; }
blockquote mark { background: none; color: inherit; border-bottom: 2px solid #d98200; }
.scroll + p { margin-top: 10px; }
.said { margin: 14px 0 4px; }
.better { font-weight: 600; }
pre { background: var(--box); padding: 10px 14px; overflow-x: auto; border-radius: 3px; }
nav { margin: 10px 0 0; }
nav a { color: inherit; margin-right: 16px; white-space: nowrap; }
"""


def report_page(facts: ReportFacts) -> str:
    """The whole page."""
    passages = passages_of(facts.evaluation)
    parts = {
        "Figures": sections.figures(facts),
        "Against the champion": sections.champion(facts),
        "Training": sections.training(facts),
        "By source": sections.sources(facts),
        "Documents": sections.documents(facts),
        "Calibration": sections.calibration(facts),
        "Samples": texts.samples(facts),
        "People's ratings": texts.ratings(facts),
        "Surprisal": map_section(passages) if passages else "",
        "Lineage": sections.lineage(facts),
    }
    told = {title: body for title, body in parts.items() if body}
    anchors = {title: title.lower().replace(" ", "-").replace("'", "") for title in told}
    links = "".join(f'<a href="#{anchors[title]}">{escape(title)}</a> ' for title in told)
    body = "".join(f'<h2 id="{anchors[title]}">{escape(title)}</h2>\n{part}' for title, part in told.items())
    head = f"<h1>{escape(facts.title)}</h1>\n{sections.lead(facts)}<nav>{links}</nav>\n"
    style = CHART_STYLE + _STYLE + (MAP_STYLE if passages else "")
    script = MAP_SCRIPT if passages else ""
    return html_page(f"Report on {facts.title}", f"<main>{head}{body}</main>\n", style=style, script=script)
