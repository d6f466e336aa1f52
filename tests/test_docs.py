"""The documentation's site: it builds without a warning, has every option and every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import elang

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    return folder


def shown(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text("utf-8"))


def test_every_public_name_is_in_the_reference(site):
    text = shown(site / "reference" / "python" / "index.html")
    for name in elang.__all__:
        if name not in ("SCORES", "__version__"):
            assert f"{elang._HOME[name]}.{name}" in text
    assert "free_energy" in text
    assert ":class:" not in text


@pytest.mark.parametrize(
    ("heading", "option"),
    [
        ("usage: elang calibrate", "--max_regret"),
        ("usage: elang serve", "--on_super_failure"),
        ("usage: elang [options] fit", "--trainer.max_epochs"),
        ("Help for --model.help=elang.SwiftModule", "--model.margin_weight"),
        ("Help for --data.help=elang.Seq2SeqData", "--data.hub_config"),
    ],
)
def test_options_are_the_parsers(site, heading, option):
    _, _, part = shown(site / "reference" / "cli" / "index.html").partition(heading)
    assert option in part[:20_000]


def test_equations_are_drawn_without_a_script(site):
    page = (site / "method" / "index.html").read_text("utf-8")
    assert page.count("<math") == (ROOT / "docs" / "method.md").read_text("utf-8").count("```math")


def test_nothing_is_loaded_from_elsewhere(site):
    source = re.compile(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)|<link[^>]+rel=\"stylesheet\"[^>]+href=\"([^\"]+)")
    found = [a or b for page in site.rglob("*.html") for a, b in source.findall(page.read_text("utf-8"))]
    assert found
    assert not [url for url in found if url.startswith(("http", "//"))]


def test_a_page_for_each_file(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.stem / "index.html").is_file()


def test_what_is_said_of_faults_is_tested():
    said = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text("utf-8")))
    texts = [path.read_text("utf-8") for path in ROOT.glob("tests/**/test_*.py")]
    written = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    assert said
    assert said <= written


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_says_first_what_it_is_for(page):
    _, blank, first, *_ = page.read_text("utf-8").split("\n")
    assert not blank
    assert re.match(r"\*\*(Tutorial|How-to|Reference|Explanation)\.\*\* \S", first)


def commands_on(page: Path):
    """The commands of `elang` in a page's blocks, with their options."""
    for block in re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if command := re.search(r"(?<!\S)elang (\w+)( .*)?", line.partition(" # ")[0]):
                yield command[1], re.findall(r"(?<!\S)--([\w.]+)", command[2] or "")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_options_of_the_commands_on_a_page_exist(site, page):
    reference = (site / "reference" / "cli" / "index.html").read_text("utf-8")
    parts = {part.partition('"')[0]: part for part in reference.split('<h2 id="')[1:]}
    of_classes = "".join(part for name, part in parts.items() if name.startswith(("-model", "-data", "model", "data")))
    for verb, options in commands_on(page):
        known = parts[verb] + (
            of_classes + parts["fit"] if verb in ("fit", "validate", "test", "score", "crossfit") else ""
        )
        for option in options:
            # What `--trainer.callbacks+=CLASS` adds has options of its own.
            if not option.startswith("trainer.callbacks."):
                assert re.search(rf"--{re.escape(option)}\b", known), f"elang {verb} --{option}"
