"""`elang report`: an evaluation as one HTML page that needs nothing beside it."""

from pathlib import Path

from elang.cli.arguments import note_replaced
from elang.errors import InputError
from elang.evaluation.report.files import EVALUATION_FILES
from elang.evaluation.report.folder import Evaluation
from elang.evaluation.report.page import section
from elang.files import check_output_file, write_atomically
from elang.terminal import Progress, say_wrapped, waiting


def report(joint: list[str], output: str = "report.html", threshold: str | None = None) -> None:
    """Show evaluations on one HTML page, and write every figure as PNG and SVG beside it.

    The page needs no network and no other file: the curve with its interval, a slider over all thresholds, the scores
    of right and wrong answers, a reliability diagram, costs, breakdowns by class and length, and the inputs that are
    deferred without need or that should have been deferred.

    Args:
        joint: Folders that `elang validate` wrote; if several, a table of all comes first.
        output: The page. Figures go into a folder beside it with a similar name.
        threshold: Name of the threshold; by default ``certified``, else ``1-SE``, else ``99%``, else ``1-SE`` on this
            set.
    """
    from jinja2 import Environment, PackageLoader

    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"The page must be an .html file, but --output is '{output}'.")
    check_output_file(path, [Path(folder) / name for folder in joint for name in EVALUATION_FILES])
    note_replaced(output)
    with waiting("reading the evaluations"):
        evaluations = [Evaluation(Path(folder)) for folder in joint]
    figures = path.with_name(f"{path.stem}_files")
    stems = [evaluation.name or path.stem for evaluation in evaluations]
    stems = [name if stems.count(name) == 1 else f"{name} {number}" for number, name in enumerate(stems, 1)]
    # The task is the title; of several pairs on one task, or of an earlier version's, the folder tells which it is.
    tasks = [evaluation.summary.task for evaluation in evaluations]
    sections = []
    with waiting("drawing the figures"), Progress(len(joint), "evaluations", late=True) as progress:
        for evaluation, task, stem in progress.each(zip(evaluations, tasks, stems, strict=True)):
            label = stem if not task else task if tasks.count(task) == 1 else f"{task}, {stem}"
            sections.append(section(evaluation, label, threshold, beside=figures, stem=stem))
    environment = Environment(loader=PackageLoader("elang"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("report.html").render(sections=sections)
    with write_atomically(path) as aside:
        aside.write_text(html, "utf-8")
    say_wrapped(*(part["answer"] for part in sections))
    say_wrapped(f"The report is {path}; its figures are in {figures}/ as PNG and SVG.")
