"""The page: what was read and measured, in words, tables and figures, as one HTML file."""

from __future__ import annotations

from importlib.resources import files

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from byol import __version__
from byol.serve.report import sections, summary
from byol.serve.report.pictures import views_picture
from byol.serve.report.provenance import provenance
from byol.serve.report.style import THEME
from byol.text import for_terminal

MAX_BYTES = 5_000_000
VIEWS = 4  # runs whose views are shown


def render(report: sections.Report) -> str:
    """The whole page. Raises `ValueError` when it would be larger than 5 MB, or a picture of views is damaged."""
    entries = report.entries
    training, accuracy, maps = (make(report) for make in (sections.training, sections.accuracy, sections.maps))
    panels = [*training, *accuracy, *maps]
    script, plots = components({p.name: p.plot for p in panels}, wrap_script=False, theme=THEME) if panels else ("", {})
    text = _template("page.html").render(
        title=summary.title(entries),
        lede=summary.lede(report),
        strokes=[(name, *stroke) for name, stroke in report.strokes.items()],
        tiles=summary.tiles(report),
        finals=summary.finals(report),
        training=training,
        training_note=sections.training_note(entries),
        views=[(entry.name, views_picture(entry.run.views)) for entry in entries if entry.run and entry.run.views][
            :VIEWS
        ],
        accuracy=accuracy,
        accuracy_note=sections.accuracy_note(report),
        baselines=report.baselines,
        queries=sections.buttons(report),
        neighbours_note=sections.neighbours_note(report),
        maps=maps,
        map_note=sections.map_note(report),
        classes=sections.legend(report),
        provenance=[provenance(entry) for entry in entries],
        version=__version__,
        data=sections.script_data(report),
        plots={name: Markup(division) for name, division in plots.items()},
        script=Markup(script),
        bokeh=Markup("\n".join(Resources("inline", components=["bokeh"]).js_raw)) if panels else "",
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
    )
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"the page would have {size / 1e6:.1f} MB (at most {MAX_BYTES / 1e6:g}); compare fewer runs")
    return text


def _asset(name: str) -> str:
    return files("byol.serve.report").joinpath(name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_for_people
    )
    return environment.from_string(_asset(name))


def _for_people(value: object) -> object:
    """Escape what a template writes, except our own markup: it may come from a stranger."""
    return for_terminal(value) if isinstance(value, str) and not isinstance(value, Markup) else value
