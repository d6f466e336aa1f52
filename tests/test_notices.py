"""What is dropped, cut, guessed or made up is said in one line, and kept."""

import ast
import re
from pathlib import Path

import pytest

from elang.notices import Notice, forget_notices, notice, notices

ROOT = Path(__file__).parent.parent


def test_a_notice_is_one_printable_line_that_is_kept_once():
    forget_notices()
    for _ in range(2):
        with pytest.warns(Notice, match="cut"):
            notice("cut-inputs", "2 inputs\n were cut: '\x1b[31m'")
    assert notices() == [{"kind": "cut-inputs", "text": r"2 inputs were cut: '\x1b[31m'"}]
    forget_notices()
    assert notices() == []


def test_other_processes_of_a_run_are_silent(monkeypatch, recwarn):
    forget_notices()
    monkeypatch.setenv("RANK", "1")
    notice("cut-inputs", "2 inputs were cut")
    assert not recwarn.list
    assert not notices()


def test_docs_list_every_kind_of_notice():
    told = set()
    for path in (ROOT / "elang").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "notice":
                assert isinstance(call.args[0], ast.Constant), f"{path}: the kind of a notice is written out"
                told.add(call.args[0].value)
    table = (ROOT / "docs" / "reliability.md").read_text("utf-8").split("## Notes")[1]
    assert told == set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE))
