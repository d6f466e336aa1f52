"""The plot of a choice: worth over cost of single models, of the path that was tested, and of what was chosen."""

from pathlib import Path
from typing import Any

from elang.evaluation.choice import Choice
from elang.evaluation.report.figures import new_axes, plain_texts
from elang.files import write_atomically


def plot_choice(path: Path, choice: Choice) -> None:
    """Draw mean worth over mean cost; each point is on the rows that prove, the line on those that chose."""
    from matplotlib.ticker import LogLocator

    with plain_texts():
        figure, (axis,) = new_axes(7.5, 5)
        for key, style in (("", {"linewidth": 1.1}), ("proved_", {"linestyle": "", "marker": ".", "alpha": 0.6})):
            what = "tested in turn, on the rows that prove" if key else "the path, on the rows that chose"
            columns = ([row[f"{key}{name}"] for row in choice.path] for name in ("cost", "worth"))
            axis.plot(*columns, color="#0072B2", label=what, **style)
        # The chosen one is drawn last, above the others.
        shown = [row for row in choice.rows if row.models != choice.chosen.models] + [choice.chosen]
        for row in shown:
            single, last = len(row.models) == 1, row is choice.chosen
            worth, low, high = row.worth
            marker, color = ("*", "#D55E00") if last else ("s", "black") if single else ("^", "#009E73")
            label = None if single and not last else f"{'chosen: ' * last}{' > '.join(row.models)}"
            look: dict[str, Any] = {"fmt": marker, "color": color, "markersize": 14 if last else 6, "zorder": 5 + last}
            axis.errorbar(row.cost[0], worth, [[worth - low], [high - worth]], label=label, **look)
            if single and not last:
                place = {"xytext": (6, -10), "textcoords": "offset points", "fontsize": 7}
                axis.annotate(row.models[0], (row.cost[0], worth), **place)
        if min(row.cost[0] for row in choice.rows) > 0:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            # Powers of ten would be formulas.
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(f"mean cost of an input, {choice.unit}")
        axis.set_ylabel(f"mean {choice.metric}")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        with write_atomically(path) as aside:
            figure.savefig(aside, dpi=130, format="png")
