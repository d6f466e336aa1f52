"""What is forked behaves as a process that Python starts, and starts others in turn."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import forking
import pytest

pytestmark = pytest.mark.skipif(not forking.CAN_FORK, reason="needs Linux")

SAYS_ALL = """
import os, signal, sys, threading
print(sys.argv, sys.path, os.getcwd(), __name__, sys.dont_write_bytecode)
# Others are set by libraries as they are imported.
print([name for name in sorted(os.environ.items()) if name[0].startswith(("PYTHON", "HF_", "PATH", "OF_"))])
print([signal.getsignal(number) for number in (1, 2, 13, 15, 17)], signal.pthread_sigmask(signal.SIG_BLOCK, []))
print([(stream.line_buffering, stream.encoding, stream.errors) for stream in (sys.stdout, sys.stderr)])
print(len(os.listdir("/proc/self/fd")) > 9, threading.active_count(), os.getpgrp() == os.getpid(), sys.stdin.read())
"""


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (SAYS_ALL, {"input": "given\n", "cwd": "/usr", "start_new_session": True}),
        (SAYS_ALL, {"env": {**os.environ, "PYTHONPATH": "/usr:/tmp", "OF_THE_TEST": "1"}}),
        ("import sys; sys.exit(7)", {}),
        ("import sys; sys.exit('so')", {}),
        ("1 / 0", {}),
        ("raise KeyboardInterrupt", {}),
        ("import os; os.kill(os.getpid(), 9)", {}),
        ("import atexit; atexit.register(print, 'end'); print('start')", {}),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()", {}),
        ("import sys; print(sys.stdin)", {"preexec_fn": partial(os.close, 0)}),
        ("print(open('x', 'wb').write(b'x' * 999))", {"file_size": 99}),
        # What it does as it ends is held to the limit, too.
        ("import atexit; atexit.register(lambda: open('x', 'wb').write(b'x' * 999))", {"file_size": 99}),
    ],
)
def test_a_fork_is_as_a_process_of_its_own(code, options, tmp_path):
    options = {"env": dict(os.environ), "input": "", "cwd": tmp_path, **options}
    found = []
    for forked in (False, True):
        command = [sys.executable, "-c", code, "an argument"]
        done = subprocess.run(command, forked=forked, capture_output=True, text=True, **options)
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[0] == found[1]


def of_both_kinds(code, **options):
    for forked in (False, True):
        command = [sys.executable, "-c", code]
        yield subprocess.Popen(command, forked=forked, stdout=subprocess.PIPE, text=True, **options)


def test_its_session_is_its_own_as_soon_as_it_is_known():
    """Who starts it may signal its group at once, which must not be the group of the tests."""
    for process in of_both_kinds("import time; time.sleep(60)", start_new_session=True):
        assert os.getpgid(process.pid) == process.pid
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
        process.stdout.close()


def test_it_is_waited_for_and_ended_by_signals():
    for process in of_both_kinds("import time; print('here', flush=True); time.sleep(60)"):
        assert process.stdout.readline() == "here\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
        process.stdout.close()


def test_a_signal_is_not_lost_before_it_has_begun():
    for process in of_both_kinds("import time; time.sleep(60)"):
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
        process.stdout.close()


def test_what_it_starts_is_forked_in_its_group_and_ends_with_it():
    code = (
        "import os, subprocess, sys, time; command = [sys.executable, '-c', "
        "'import os, sys, time; print(os.getpgrp(), \"torch\" in sys.modules, flush=True); time.sleep(60)']; "
        "subprocess.Popen(command, forked=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, forked=True, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == f"{process.pid} True\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    assert process.stdout.read() == ""
    process.stdout.close()
    end = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
        pytest.fail("one goes on")


def test_what_is_not_asked_for_is_not_forked(tmp_path):
    code = "import sys; print('torch' in sys.modules)"
    (tmp_path / "elang.py").write_text(code)
    environment = os.environ | {"HF_HOME": str(tmp_path)}
    for command, more in (
        (["-c", code], {}),
        # A library would have read it as it was imported.
        (["-m", "elang"], {"cwd": tmp_path, "env": environment}),
        (["-m", "elang"], {"cwd": tmp_path, "forked": False}),
    ):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True, **more)
        assert done.stdout == "False\n"
    done = subprocess.run([sys.executable, "-m", "elang", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("elang ")
