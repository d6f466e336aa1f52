"""Builds what the site does not keep twice: its first page from the README, the command line's options, equations."""

import contextlib
import html
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
MODULES = ("FinetuneModule", "SwiftModule", "JointModule", "ScoreModule")
DATA = ("TextClassificationData", "TaskData", "Seq2SeqData")


def on_config(config: Any) -> Any:
    """Show ```math blocks as MathML, which browsers draw without a script. The versions come last."""
    config["nav"].append({"Versions": "changelog.md"})
    fence = {"name": "math", "class": "math", "format": _equation}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {
        "index.md": _first_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text("utf-8"),
        "reference/cli.md": _command_line(),
        "reference/python.md": _python(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files of the repository that are no pages, instead of linking to them."""
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)#]+)\)", r"`\2`", markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Names in docstrings are set as code, without the marks of their kind."""
    return re.sub(r":(?:class|meth|func|mod|data|attr):(<code[^>]*>)~?", r"\1", content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Link to the repository without its numbers of stars, which the theme would fetch from its host."""
    return output.replace(' data-md-component="source"', "")


def _equation(source: str, *_: Any, **__: Any) -> str:
    return f'<p class="equation">{convert(source.strip(), display="block")}</p>'


def _first_page() -> str:
    """The README, with its links as seen from the pages."""
    text = (ROOT / "README.md").read_text("utf-8").replace("](docs/", "](").replace("(CHANGELOG.md)", "(changelog.md)")
    return re.sub(r"\[([^\]]*)\]\((?![a-z]+://)([^)]*\.(?:ipynb|yaml)|[A-Z]+\.md)\)", r"`\2`", text)


def _command_line() -> str:
    """Every verb's options as its parser prints them."""
    use = "This page lists every verb and option, as `elang VERB --help` prints them"
    parts = ["# The command line", f"**Reference.** {use}, and `elang fit --model.help CLASS` and `--data.help CLASS`."]
    parts += ["## elang", _printed("--help")]
    verbs = re.findall(r"^  (\w+) +\S", _help("--help").split("verbs:")[1].split("options:")[0], re.MULTILINE)
    for verb in verbs:
        parts += [f"## {verb}", _printed(verb, "--help")]
    for option, names in (("model", MODULES), ("data", DATA)):
        for name in names:
            verb = {"JointModule": "validate", "ScoreModule": "score"}.get(name, "fit")
            parts += [f"## --{option} {name}", _printed(verb, f"--{option}.help", name)]
    return "\n\n".join(parts) + "\n"


def _printed(*args: str) -> str:
    return f"<pre><code>{html.escape(_help(*args).rstrip())}</code></pre>"


def _help(*args: str) -> str:
    from elang.cli import main

    shown = io.StringIO()
    os.environ["COLUMNS"] = "88"
    before, sys.argv = sys.argv, ["elang", *args]
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = before
    return re.sub(r"[^\n -~]", "", shown.getvalue())


def _python() -> str:
    """The public names, and the modules behind them."""
    import elang

    use = "This page lists the names that `import elang` gives, and then the modules that hold the equations."
    parts = ["# Python", f"**Reference.** {use}"]
    names = [name for name in elang.__all__ if name not in ("SCORES", "__version__")]
    parts += [f"::: {elang._HOME[name]}.{name}" for name in names]
    for path in sorted((ROOT / "elang" / "method").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        parts += [f"## {module}", f"::: {module}\n    options:\n      show_root_heading: false"]
    return "\n\n".join(parts) + "\n"
