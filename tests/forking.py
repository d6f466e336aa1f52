"""Starts `python -m elang` in the time of a fork: from a process that has torch and its like imported already.

``Popen`` stands in for ``subprocess.Popen`` in the tests, see `conftest.py`. Commands of this Python that run a module
of ``MODULES``, and those with ``forked=True``, are forked from such a server, of which each process of pytest has one;
so are those that a forked command starts in turn, as Lightning does for each further rank. What a process has from its
parent is theirs: folder, environment, streams, session, signals and ``preexec_fn``. All other commands, and those with
``forked=False``, are started as ever; so are those whose environment differs in a variable that a library reads while
it is imported, unless ``forked=True`` asks for a server of that environment.

``file_size`` is the number of bytes above which the process can write no file, as on a full disk. What measures
coverage is not held to it: it writes after the process is done, or does not measure a process that is not forked.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import multiprocessing.process
import os
import pickle
import pkgutil
import resource
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
from functools import partial

EXECUTABLE = sys.executable
# Windows cannot, and on macOS libraries start threads as they are imported.
CAN_FORK = sys.platform.startswith("linux")
# Of the command line, of torchrun, and of a notebook.
MODULES = ("elang", "elang.__main__", "torch.distributed.run", "ipykernel_launcher")
# Imported beside the modules of elang: what these import late.
LATE = (
    "lightning.pytorch.cli",
    "lightning.pytorch.loggers",
    "matplotlib.pyplot",
    "torch.distributed.run",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "transformers.models.bert.modeling_bert",
    "transformers.models.t5.modeling_t5",
    "uvicorn",
    "fastapi",
)
# How variables begin that are read while something is imported, and those of them that a fork can still obey.
AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "PYTORCH", "TOKENIZERS_", "MPL", "TQDM_", "LC_", "LANG", "PYTHON")
OBEYED = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "TORCHELASTIC_", "TORCH_NCCL_")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def read_at_import(environment):
    return frozenset((k, v) for k, v in environment.items() if k.startswith(AT_IMPORT) and not k.startswith(OBEYED))


def python_command(args):
    """What this Python is told to run: whether without buffers, `-m` or `-c`, the module or code, and its arguments."""
    if not isinstance(args, (list, tuple)) or not args or os.fspath(args[0]) != EXECUTABLE:
        return None
    words = [os.fspath(arg) for arg in args[1:]]
    unbuffered = bool(words) and words[0] == "-u"
    words = words[unbuffered:]
    return (unbuffered, *words[:2], words[2:]) if len(words) > 1 and words[0] in ("-m", "-c") else None


class Popen(subprocess.Popen):
    """A process that is forked from the server if it can be."""

    # Sockets by what a server's libraries read while they were imported, and what was started for them.
    servers: dict = {}  # noqa: RUF012
    started: list = []  # noqa: RUF012
    starting = threading.Lock()

    def __init__(self, args, *more, forked=None, file_size=None, **options):
        self._asked, self._told, self._file_size = forked, None, file_size
        self._session = options.get("start_new_session", False)
        super().__init__(args, *more, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
        environment = dict(os.environ if env is None else env)
        command = python_command(args) if executable is None and not pass_fds and not more[2] else None
        if self._asked is None and command is not None and command[2] not in MODULES:
            command = None
        server = None if command is None or self._asked is False else server_of(environment, self._asked)
        if server is None:
            if self._asked and CAN_FORK:
                raise RuntimeError(f"cannot be forked: {args}")
            if self._file_size is not None:
                preexec_fn = partial(limit_files, self._file_size, preexec_fn)
                env = {name: value for name, value in environment.items() if not name.startswith("COVERAGE_PROCESS_")}
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
            return
        pipes = more[3:9]
        request = {
            "command": command,
            "environment": environment,
            "cwd": os.path.abspath(os.getcwd() if cwd is None else cwd),
            "preexec_fn": preexec_fn,
            "file_size": self._file_size,
            "session": self._session,
            "ignored": [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN],
            "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        }
        given = [own if own != -1 else i for i, own in enumerate((pipes[0], pipes[3], pipes[5]))]
        request["streams"] = [i for i, descriptor in enumerate(given) if is_open(descriptor)]
        self._told, theirs = socket.socketpair()
        try:
            descriptors = [given[i] for i in request["streams"]]
            socket.send_fds(server, [pickle.dumps(request)], [*descriptors, theirs.fileno()])
        finally:
            theirs.close()
            self._close_pipe_fds(*pipes)
        said = self._told.recv(4, socket.MSG_WAITALL)
        if not said:
            raise RuntimeError("the server that forks has ended")
        (self.pid,) = struct.unpack("i", said)
        self._child_created = True

    def _try_wait(self, wait_flags):
        if self._told is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        said = self._told.recv(4, socket.MSG_WAITALL)
        self._told.close()
        return self.pid, struct.unpack("i", said)[0] if said else signal.SIGKILL

    def _internal_poll(self, _deadstate=None, **more):
        if self._told is None:
            return super()._internal_poll(_deadstate, **more)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def limit_files(size, also=None):
    """Write no file larger than ``size``, until :func:`lift_limit`; call ``also``, if given, as well."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if also is not None:
        also()


def lift_limit():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def server_of(environment, asked):
    """The server whose libraries have read these variables; None without one.

    The first one is started when it is needed, one of another environment only if a test has asked for it.
    """
    if not CAN_FORK:
        return None
    key = read_at_import(environment)
    with Popen.starting:
        if key not in Popen.servers:
            # A command that was forked itself has only what was forked with it.
            if IS_FORKED or not (asked or (not Popen.servers and key == read_at_import(os.environ))):
                return None
            Popen.servers[key] = start_server(environment)
        return Popen.servers[key]


def start_server(environment):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(there.fileno())]
    # Threads that it had would not be there after a fork.
    environment = {**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with there:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        Popen.started.append(TRUE_POPEN(command, env=environment, pass_fds=[there.fileno()], **quiet))
    if here.recv(64) != b"ready":
        raise RuntimeError("the server that forks did not start")
    return here


TRUE_POPEN = subprocess.Popen
IS_FORKED = False


# What follows runs in the server, and in what is forked from it.


def import_all():
    """Everything that a command may need, as far as it is installed; descriptors that this has opened."""
    import elang

    names = [found.name for found in pkgutil.walk_packages(elang.__path__, "elang.")]
    for name in (*names, *LATE):
        if name != "elang.__main__":
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise RuntimeError(f"{len(threads)} threads run after the imports, so this process cannot be forked")
    # Never looked at again, so that children share the memory.
    gc.collect()
    gc.freeze()


def descriptors():
    """Those that are open above the standard streams."""
    return {number for number in map(int, os.listdir("/proc/self/fd")) if number > 2 and is_open(number)}


def serve(requests, kept):
    """Fork a process for each request until no one asks; return in the forked process, with its request."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    # They are for the command, which lets them through once it is itself, not for what is forked beside it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    running = {}
    while True:
        ready, _, _ = select.select([requests, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
        for pid, status in ended():
            if pid in running:
                with contextlib.suppress(OSError), running.pop(pid) as told:
                    told.send(struct.pack("i", status))
        if requests not in ready:
            continue
        data, given, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not data:
            return None
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = pickle.loads(data)
            if request["session"]:
                os.setsid()
            # Only now does its parent learn the number, and may signal its group.
            os.write(given[-1], struct.pack("i", os.getpid()))
            for number in descriptors() - kept - {*given[:-1]}:
                os.close(number)
            for own in (requests, *running.values()):
                own.detach()
            return request, given[:-1]
        running[pid] = socket.socket(fileno=given.pop())
        for number in given:
            os.close(number)


def ended():
    """Processes that have ended, and how."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found


def become(request, given, set_by_libraries):
    """Take over what a process has from its parent."""
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(request["cwd"])
    before = path_entries(os.environ)
    os.environ.clear()
    os.environ.update({**set_by_libraries, **request["environment"]})
    for number, descriptor in zip(request["streams"], given, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in {0, 1, 2} - {*request["streams"]}:
        os.close(number)
    if request["preexec_fn"] is not None:
        request["preexec_fn"]()
    if request["file_size"] is not None:
        limit_files(request["file_size"])
        # After what the command does as it ends, and before coverage, which registered as this process was forked.
        atexit.register(lift_limit)
    unbuffered, kind, _, rest = request["command"]
    open_streams(unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")))
    # What Python and libraries have read as they began.
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    others = [entry for entry in sys.path[1:] if entry not in before]
    sys.path[:] = [request["cwd"] if kind == "-m" else "", *path_entries(os.environ), *others]
    importlib.invalidate_caches()
    sys.argv = [kind, *rest]
    tempfile.tempdir = None
    multiprocessing.process.ORIGINAL_DIR = request["cwd"]
    if rank_zero := sys.modules.get("lightning_utilities.core.rank_zero"):
        rank_zero.rank_zero_only.rank = int(next(filter(None, map(os.environ.get, RANKS)), 0))


def path_entries(environment):
    found = environment.get("PYTHONPATH", "")
    return [os.path.abspath(entry) for entry in found.split(os.pathsep)] if found else []


def open_streams(unbuffered):
    """Make the streams anew, as the same objects, which handlers of logs hold."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream, mode = getattr(sys, name), "wb" if number else "rb"
        if not is_open(number):
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
            continue
        raw = unbuffered and number > 0
        stream.__init__(
            open(number, mode, buffering=0 if raw else -1, closefd=False),  # noqa: SIM115
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=not unbuffered and (number == 2 or os.isatty(number)),
            write_through=raw,
        )


def run(request):
    """Run the command and end as Python does."""
    _, kind, what, _ = request["command"]
    code = 0
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            sys.stderr.write(f"{end.code}\n")
    except BaseException as error:
        # Without this function.
        error = error.with_traceback(error.__traceback__.tb_next)
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 255)


def main(number):
    global IS_FORKED, MODULES
    # Before anything imports the name.
    subprocess.Popen = Popen
    requests = socket.socket(fileno=number)
    before = {*os.environ}
    import_all()
    set_by_libraries = {name: value for name, value in os.environ.items() if name not in before}
    # What outlives those that started it is reaped here, for PID 1 of a container may be slow to.
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    kept = descriptors() - {number}
    requests.send(b"ready")
    while (found := serve(requests, kept)) is not None:
        request, given = found
        IS_FORKED = True
        # What the command starts in turn is forked from a process beside it, which is as clean as this one.
        here, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            requests.close()
            become(request, given, set_by_libraries)
            # So is what starts itself anew, as Lightning does for each further rank.
            if request["command"][1] == "-m":
                MODULES = (*MODULES, request["command"][2])
            Popen.servers[read_at_import(os.environ)] = here
            run(request)
        here.close()
        for descriptor in given:
            os.close(descriptor)
    if IS_FORKED:
        os._exit(0)


if __name__ == "__main__":
    # By its name, for what it changes is looked at there.
    importlib.import_module("forking").main(int(sys.argv[1]))
