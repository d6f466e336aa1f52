"""The documentation's site: it builds without a warning, has every option and every public name, and is searched."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import asked_for

import elang

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/example/elang"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    variables = {"NO_MKDOCS_2_WARNING": "1", "ELANG_REPOSITORY": REPOSITORY}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)
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
        ("usage: elang fit ", "--trainer.max_epochs"),
        ("Help for --model.help=elang.SwiftModule", "--model.margin_weight"),
        ("Help for --data.help=elang.Seq2SeqData", "--data.hub_config"),
    ],
)
def test_options_are_the_parsers(site, heading, option):
    _, _, part = shown(site / "reference" / "cli" / "index.html").partition(heading)
    assert option in part[:25_000]


def test_equations_are_drawn_without_a_script(site):
    page = (site / "method" / "index.html").read_text("utf-8")
    assert page.count("<math") == (ROOT / "docs" / "method.md").read_text("utf-8").count("```math")


def test_nothing_is_loaded_from_elsewhere(site):
    source = re.compile(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)|<link[^>]+rel=\"stylesheet\"[^>]+href=\"([^\"]+)")
    found = [a or b for page in site.rglob("*.html") for a, b in source.findall(page.read_text("utf-8"))]
    assert found
    assert not [url for url in found if url.startswith(("http", "//"))]


def test_every_page_links_to_the_repository(site):
    """If its address is given, and without asking it how many stars it has."""
    for page in site.rglob("index.html"):
        text = page.read_text("utf-8")
        assert f'<a href="{REPOSITORY}"' in text
        assert 'data-md-component="source"' not in text


def test_without_an_address_there_is_no_link(monkeypatch):
    from mkdocs.config import load_config

    monkeypatch.delenv("ELANG_REPOSITORY", raising=False)
    assert load_config(str(ROOT / "mkdocs.yml")).repo_url is None


def test_all_pages_are_searched(site):
    entries = json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]
    pages = {entry["location"].partition("#")[0] for entry in entries}
    assert pages >= {"", "changelog/", "reference/cli/", *(f"{page.stem}/" for page in (ROOT / "docs").glob("*.md"))}
    options = "".join(entry["text"] for entry in entries if entry["location"].startswith("reference/cli/"))
    assert "--max_regret" in options


def test_searching_in_a_browser(site, chrome):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        try:
            chrome.get(home)
            chrome.find_element(By.CSS_SELECTOR, "input.md-search__input").send_keys("calibrate")
            links = (By.CSS_SELECTOR, "a.md-search-result__link")
            WebDriverWait(chrome, 30).until(lambda _: chrome.find_elements(*links))
            found = {link.get_attribute("href") for link in chrome.find_elements(*links)}
        finally:
            server.shutdown()
    assert [url for url in found if url.startswith((f"{home}certificates/", f"{home}reference/cli/"))]
    assert [url for url in asked_for(chrome, home) if not url.startswith((home, "data:", "blob:"))] == []


def test_a_page_for_each_file(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.stem / "index.html").is_file()


def test_scripts_and_results_that_are_named_exist():
    """Each figure has its script."""
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text("utf-8")
        scripts = re.findall(r"`(?:benchmarks/)?((?:quality|speed|scale|reliability)/\w+\.py)`", text)
        results = re.findall(r"results/(\w+\.json)`" if page.stem != "performance" else r"`(\w+\.json)`", text)
        named = [*scripts, *(f"results/{name}" for name in results)]
        assert not [name for name in named if not (ROOT / "benchmarks" / name).is_file()], page
        assert named or page.stem not in ("performance", "results", "reliability")


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
    # All blocks, or the end of one of another language would begin one.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for block in (text for language, text in blocks if not language):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if command := re.search(r"(?<!\S)elang (\w+)( .*)?", line.partition(" # ")[0]):
                yield command[1], re.findall(r"(?<!\S)--([\w.]+)", command[2] or "")


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "configs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.stem,
)
def test_options_of_the_commands_on_a_page_exist(site, page):
    reference = (site / "reference" / "cli" / "index.html").read_text("utf-8")
    parts = {part.partition('"')[0]: part for part in reference.split('<h2 id="')[1:]}
    of_classes = "".join(part for name, part in parts.items() if name.startswith(("-model", "-data", "model", "data")))
    for verb, options in commands_on(page):
        known = parts[verb] + (
            of_classes + parts["fit"] if verb in ("fit", "validate", "test", "score", "crossfit", "ask") else ""
        )
        for option in options:
            # What `--trainer.callbacks+=CLASS` adds has options of its own.
            if not option.startswith("trainer.callbacks."):
                assert re.search(rf"--{re.escape(option)}\b", known), f"elang {verb} --{option}"
