"""The plot of a choice: worth over cost of single models, of the path that was tested, and of what was chosen."""

from pathlib import Path

from elang.evaluation.choice import Choice
from elang.evaluation.report.figures import new_axes, plain_texts
from elang.files import write_atomically


def plot_choice(path: Path, choice: Choice) -> None:
    """Draw mean worth over mean cost; each point is on the rows that prove, the line on those that chose."""
    with plain_texts():
        figure, (axis,) = new_axes(7.5, 5)
        for key, style in (("", {"linewidth": 1.1}), ("proved_", {"linestyle": "", "marker": ".", "alpha": 0.6})):
            what = "tested in turn, on the rows that prove" if key else "the path, on the rows that chose"
            columns = ([row[f"{key}{name}"] for row in choice.path] for name in ("cost", "worth"))
            axis.plot(*columns, color="#0072B2", label=what, **style)
        for row in [*choice.rows, choice.chosen]:
            single, last = len(row.models) == 1, row is choice.chosen
            worth, low, high = row.worth
            marker, color = ("*", "#D55E00") if last else ("s", "black") if single else ("^", "#009E73")
            error = [[worth - low], [high - worth]]
            label = f"chosen: {' > '.join(row.models)}" if last else None
            size = 14 if last else 6
            axis.errorbar(
                row.cost[0], worth, error, fmt=marker, color=color, markersize=size, label=label, zorder=5 + last
            )
            if not last:
                place = {"xytext": (6, -10), "textcoords": "offset points", "fontsize": 7}
                axis.annotate(" > ".join(row.models), (row.cost[0], worth), **place)
        axis.set_xscale("log" if min(row.cost[0] for row in choice.rows) > 0 else "linear")
        axis.set_xlabel(f"mean cost of an input, {choice.unit}")
        axis.set_ylabel(f"mean {choice.metric}")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        with write_atomically(path) as aside:
            figure.savefig(aside, dpi=130, format="png")
