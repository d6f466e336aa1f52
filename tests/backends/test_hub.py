"""A hub that takes the call and says nothing: models that are here are used, others refused in bounded time."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import QUIET, write_model

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def server():
    """Its address, and the calls that it took."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        calls = []

        def take():
            try:
                while True:
                    calls.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        for call in calls:
            call.close()


@pytest.fixture
def silent(server):
    for call in server[1]:
        call.close()
    server[1].clear()
    return server


@pytest.fixture
def home(tmp_path, tmp_path_factory):
    """The library's folder: of another test each time, at one place, for the library keeps the name."""
    (tmp_path / "home").mkdir()
    place = tmp_path_factory.getbasetemp() / "hub"
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "home")
    return place


LESS_PATIENT = """
import sys
from elang.backends.loading import hub
from elang.cli import main
from elang.data import columns

assert hub.HUB_PATIENCE == columns.HUB_PATIENCE > 1
hub.HUB_PATIENCE = columns.HUB_PATIENCE = 1
sys.exit(main())
"""


def asked(args, address, home, forked=True):
    """Run a command that takes this for the hub."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, *(["-c", LESS_PATIENT] if forked else ["-m", "elang"]), *map(str, args)]
    return subprocess.run(command, env=environment, forked=forked, capture_output=True, text=True, timeout=120)


def write_package(folder, name, version):
    """An empty package that counts as installed."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n")
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_data_of_a_hub_that_does_not_answer(silent, home, base_model, tmp_path):
    address, calls = silent
    start = time.monotonic()
    args = ["--model.model", base_model, "--model.output", tmp_path / "m", "--data.train", "train", *QUIET]
    done = asked(["fit", *args, "--data.hub", f"owner/name@{COMMIT}"], address, home)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"does not give the data set 'owner/name@{COMMIT}'" in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 60
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("cached", "sharded"),
    [
        *(("all", sharded) for sharded in (False, True)),
        *(("no weights", sharded) for sharded in (False, True)),
        *((cached, False) for cached in ("all, with peft", "no tokenizer", "nothing", "a branch")),
    ],
)
def test_a_hub_that_does_not_answer(cached, sharded, silent, home, tmp_path, monkeypatch):
    from transformers import AutoModelForSequenceClassification

    address, calls = silent
    model = write_model(tmp_path / "model", labels=("bad", "good"))
    if sharded:
        found = AutoModelForSequenceClassification.from_pretrained(model)
        (model / "model.safetensors").unlink()
        found.save_pretrained(model, max_shard_size="20KB")
        assert len(list(model.glob("*.safetensors"))) > 1
    there = home / "hub" / "models--owner--name" / "snapshots" / COMMIT
    if cached != "nothing":
        shutil.copytree(model, there)
    if cached == "no weights":
        next(iter(there.glob("*.safetensors"))).unlink()
    if cached == "no tokenizer":
        for path in there.glob("token*"):
            path.unlink()
    (tmp_path / "in.txt").write_text("a good film\n")
    name = f"owner/name@{COMMIT}"
    if cached == "a branch":
        (there.parent.parent / "refs").mkdir()
        (there.parent.parent / "refs" / "main").write_text(COMMIT)
        name = "owner/name@main"
    if cached == "all, with peft":
        # With which the library looks for adapters, too.
        write_package(tmp_path / "site", "peft", "0.19.0")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    command = ["predict", "--swift_model", name, "--super_model", name, "--threshold", "0"]
    start = time.monotonic()
    # What is installed is looked for while the library is imported; one waits for as long as a user's.
    forked = cached not in ("all, with peft", "nothing")
    done = asked([*command, "--input", str(tmp_path / "in.txt")], address, home, forked)
    if cached.startswith("all"):
        assert done.returncode == 0, done.stderr[-2000:]
        assert '"label"' in done.stdout
        assert not calls
    else:
        assert done.returncode == 2, done.stderr[-2000:]
        assert f"elang: error: The model '{name}' cannot be loaded" in done.stderr
        assert "reachable or cached" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - start < 60
        assert len(calls) == 1
