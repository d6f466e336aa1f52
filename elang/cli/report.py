"""`elang report`: an evaluation as one HTML page that needs nothing beside it."""

from pathlib import Path

from elang.errors import InputError
from elang.evaluation.report.files import EVALUATION_FILES
from elang.evaluation.report.folder import Evaluation
from elang.evaluation.report.page import section
from elang.files import check_output_file, written_aside
from elang.terminal import say


def report(joint: list[str], output: str = "report.html", threshold: str | None = None) -> None:
    """Put evaluations onto one HTML page, with every figure beside it as PNG and SVG.

    The page needs no network and no other file: the curve with its interval, a slider over all thresholds, the scores
    of right and wrong answers, a reliability diagram, costs, breakdowns by class and length, and the inputs that are
    deferred without need or kept without right.

    Args:
        joint: Folders that `elang validate` wrote; of several, a table of all comes first.
        output: The page. Figures go into a folder beside it, named like it.
        threshold: Name of the threshold that the page is about; by default ``certified`` where there is one, else
            ``99%``, else the one that reaches the Super on the set itself.

    Raises:
        InputError: If a folder is not an evaluation.
    """
    from jinja2 import Environment, PackageLoader

    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"The page must be an .html file, but --output is '{output}'.")
    check_output_file(path, [Path(folder) / name for folder in joint for name in EVALUATION_FILES])
    evaluations = [Evaluation(Path(folder)) for folder in joint]
    names = [one.name for one in evaluations]
    beside = path.with_name(f"{path.stem}_files")
    sections = []
    for place, one in enumerate(evaluations):
        label = one.name if names.count(one.name) == 1 else f"{one.name} {place + 1}"
        sections.append(section(one, label, threshold, beside))
    page = Environment(loader=PackageLoader("elang"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = page.get_template("report.html").render(sections=sections)
    with written_aside(path) as aside:
        aside.write_text(html, "utf-8")
    say(f"The report is {path}; its figures are in {beside}/ as PNG and SVG.")
