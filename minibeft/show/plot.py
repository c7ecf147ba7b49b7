"""Plots in one style: SVG that takes the colour of the text around it, so that it reads on light and on dark pages, or
PNG on white. A plot is a function that draws on an empty figure."""

import io
import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from minibeft.errors import needs
from minibeft.show.files import MARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
# Stands for the text's colour until the SVG is written; matplotlib knows no currentColor.
INK = "#010203"
# Okabe and Ito's colours, told apart by colour-blind readers, in middle tones; with markers, for print.
STYLES = {"#0072B2": "o", "#E69F00": "s", "#009E73": "^", "#CC79A7": "D", "#D55E00": "v"}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
CLEAR = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")


def looks(names: Iterable[Any]) -> dict[Any, dict[str, str]]:
    """How to draw the line of each name, for all plots that show it; dotted where a colour is used again."""
    styles = list(STYLES.items())
    found = {}
    for i, name in enumerate(dict.fromkeys(names)):
        again, at = divmod(i, len(styles))
        found[name] = dict(zip(("color", "marker"), styles[at], strict=True)) | {"linestyle": ":" if again else "-"}
    return found


class Plot(NamedTuple):
    """A picture and what it shows, in words."""

    title: str
    svg: str
    alt: str


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """BadInput if matplotlib is missing; called before the work, so that none is lost."""
    with needs("matplotlib", "train", "a plot"):
        import matplotlib  # noqa: F401


def drawn(draw: Draw, size: tuple[float, float], look: dict[Any, Any], **file: Any) -> bytes:
    """The figure as a file's bytes."""
    require_matplotlib()
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    buffer = io.BytesIO()
    cycle = cycler(color=list(STYLES), marker=list(STYLES.values()))
    plain: dict[Any, Any] = {
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycle,
    }
    with rc_context(plain | look):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, **file)
    return buffer.getvalue()


def along_epochs(axes: Any, **more: Any) -> None:
    """Epochs along x, with ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", **more)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def as_png(draw: Draw, size: tuple[float, float] = (8, 4)) -> bytes:
    """On white, for a file."""
    return drawn(draw, size, {}, format="png", dpi=150, metadata={"Software": MARK})


def as_svg(draw: Draw, name: str, size: tuple[float, float] = (8, 4)) -> str:
    """An inline SVG element in the page's font and colour, without links; its ids begin with `name`."""
    look: dict[Any, Any] = (
        dict.fromkeys(INKED, INK) | dict.fromkeys(CLEAR, "none") | {"svg.fonttype": "none", "svg.hashsalt": name}
    )
    svg = drawn(draw, size, look, format="svg", metadata={"Date": None, "Creator": None}).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<image[^>]*?) id="[^"]*"', r"\1", svg)  # equal pictures get equal ids
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| width="[\d.]+pt" height="[\d.]+pt"', "", svg)
    svg = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").strip()
