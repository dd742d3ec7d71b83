"""A chart to touch in a static page: live with its scripts, a still picture in print and without them."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path

from bar import files
from bar.errors import BarError

try:
    import altair
    import vl_convert
except ModuleNotFoundError as error:
    raise BarError(f"{error.name} is not installed: pip install '.[charts]' in a checkout") from error

WIDTH = 300  # of a chart, in pixels: with its axis it fits a phone
LOOK = {
    "background": "white",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "labelSeparation": 6,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "#dddddd",
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "orient": "bottom", "columns": 2},
    "title": {"fontSize": 12, "anchor": "start", "fontWeight": "normal"},
    "aria": False,  # the figure has one description; hundreds of described marks would drown it
}


class Touch:
    """A chart with sliders, for a notebook and for a page of the book.

    Parameters
    ----------
    chart : altair.TopLevelMixin
        The chart, with its parameters bound to sliders or menus.
    name : str
        The page refers to it by this name.
    caption : str
        What stands below it.
    alt : str
        What somebody is told who does not see it.
    play : str, optional
        The parameter that a button "Play" moves from its lowest to its highest value.
    still : mapping, optional
        Values of parameters in the still picture, in place of those that the chart begins with.

    Examples
    --------
    >>> import altair
    >>> Touch(altair.Chart().mark_point(), "dot", "A dot.", "One dot.").name
    'dot'
    """

    def __init__(
        self,
        chart: "altair.TopLevelMixin",
        name: str,
        caption: str,
        alt: str,
        play: str | None = None,
        still: Mapping[str, object] | None = None,
    ) -> None:
        self.spec = chart.configure(**LOOK).to_dict()
        self.name, self.caption, self.alt, self.play, self.still = name, caption, alt, play, dict(still or {})

    def svg(self) -> str:
        """Return the still picture."""
        spec = json.loads(json.dumps(self.spec))
        for parameter in spec.get("params", ()):
            if parameter["name"] in self.still:
                parameter["value"] = self.still[parameter["name"]]
        return vl_convert.vegalite_to_svg(json.dumps(spec))

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        """The figure for a page; Jupyter, which can draw the chart itself, is given the chart."""
        picture = "data:image/svg+xml;base64," + base64.b64encode(self.svg().encode()).decode()
        spec = json.dumps(self.spec, separators=(",", ":")).replace("<", "\\u003c")
        play = f' data-play="{self.play}"' if self.play else ""
        page = (
            f'<figure class="touch" id="chart-{self.name}"{play}>'
            '<div class="touch-controls"></div><div class="touch-live"></div>'
            f'<img class="touch-still" alt="{html.escape(self.alt)}" src="{picture}">'
            f'<script type="application/json">{spec}</script>'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )
        return {"text/html": page, "application/vnd.vegalite.v6+json": self.spec, "text/plain": f"Touch({self.name!r})"}


def slider(name: str, low: float, high: float, step: float, value: float, label: str) -> "altair.Parameter":
    """Return a parameter that a slider moves."""
    return altair.param(
        name=name, value=value, bind=altair.binding_range(min=low, max=high, step=step, name=f"{label} ")
    )


def menu(name: str, options: list, value: object, label: str) -> "altair.Parameter":
    """Return a parameter that is chosen from a list."""
    return altair.param(name=name, value=value, bind=altair.binding_select(options=options, name=f"{label} "))


def write_scripts(folder: str | Path) -> Path:
    """Write the one script that all charts of a book share (Vega, Vega-Lite and Vega-Embed); nothing is fetched.

    Parameters
    ----------
    folder : path
        Where to.

    Returns
    -------
    Path
        The script.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     "vegaEmbed" in write_scripts(folder).read_text("utf-8")
    True
    """
    path = Path(folder) / "vega.js"
    files.write_text(path, f"(() => {{{vl_convert.javascript_bundle()}}})();\n")
    return path
