"""Replies as they arrive, in a file that survives a kill: what is in it is not asked again."""

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import Any

from elang.backends.openai.replies import Reply
from elang.backends.openai.settings import Usage
from elang.errors import InputError
from elang.json_files import parse_object
from elang.locks import lock_output, unlock_output

_FORMAT = 1


class Journal:
    """Replies by the hashes of their requests; with a ``path`` in a file, which is on the disk after :meth:`synced`.

    The requests themselves, with texts and headers, are not kept. ``run`` is random, and that of the file where there
    is one: a run that continues another has the same.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.run = secrets.token_hex(8)
        # In a file: where each reply's line begins. Otherwise the replies.
        self._places: dict[str, int] = {}
        self._replies: dict[str, Reply] = {}
        self._file: Any = None
        # Rows that are written, and how many of them are on the disk.
        self._written = self._on_disk = 0
        self._syncing: asyncio.Future[None] | None = None
        # What the replies took that were in the file when it was opened.
        self.kept = Usage(0, 0, 0)
        # The requests of batches that are under way, by their ids.
        self.batches: dict[str, list[str]] = {}
        # Which file was read, and up to where.
        self._known = (0, 0)

    def __len__(self) -> int:
        return len(self._places) + len(self._replies)

    def __contains__(self, request: str) -> bool:
        return request in self._places or request in self._replies

    def __getitem__(self, request: str) -> Reply:
        if request in self._replies:
            return self._replies[request]
        self._file.seek(self._places[request])
        return Reply.of(json.loads(self._file.readline())["reply"])

    def __enter__(self) -> "Journal":
        """Read what is new in the file, and keep others from writing it."""
        if self.path is None:
            return self
        lock_output(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Behind what is there already; what is written goes to the end wherever was read last.
            self._file = self.path.open("a+b")
            self._read(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            if self._file is not None:
                # After an error the last line may be incomplete.
                self._known = (0, 0) if any(error) else (self._known[0], self._file.seek(0, os.SEEK_END))
                self._file.close()
            self._file = None
            unlock_output(self.path)

    def _read(self, path: Path) -> None:
        """Find the replies in the file, or those behind what was read before."""
        about = os.fstat(self._file.fileno())
        file, start = self._known
        self._known = (0, 0)
        if file != about.st_ino or start > about.st_size:
            self._places, self.batches, self.kept, start = {}, {}, Usage(0, 0, 0), 0
        first, totals = start == 0, [*vars(self.kept).values()]
        self._file.seek(start)
        try:
            for line in self._file:
                if not line.endswith(b"\n"):
                    # The last line may be incomplete, and would spoil the next one.
                    self._file.truncate(start)
                    break
                row = parse_object(line)
                if first and row.get("format") != _FORMAT:
                    raise ValueError(f"its first line is {row}")
                if first:
                    # Those of earlier versions have none.
                    self.run = str(row.get("run", ""))
                if "batch" in row:
                    self._note(str(row["batch"]), row["requests"])
                elif not first:
                    if (usage := Reply.of(row["reply"]).usage) is not None:
                        totals = [a + b for a, b in zip(totals, vars(usage).values(), strict=True)]
                    self._places[row["request"]] = start
                start, first = start + len(line), False
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"'{path}' is damaged ({error}). Delete it to ask everything again.") from error
        self.kept = Usage(*totals)
        self._known = about.st_ino, start
        if first:
            self._write({"format": _FORMAT, "run": self.run})

    def _write(self, row: dict[str, Any]) -> int:
        """Append a row, and return where it begins."""
        place: int = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        self._written += 1
        return place

    async def synced(self) -> None:
        """Wait until all that is written is on the disk, in a thread; those who wait together share one sync."""
        rows = self._written
        while self._file is not None and self._on_disk < rows:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.ensure_future(asyncio.to_thread(self._sync, self._file.fileno()))
            await asyncio.shield(self._syncing)

    def _sync(self, number: int) -> None:
        rows = self._written
        os.fsync(number)
        self._on_disk = rows

    def keep(self, request: str, reply: Reply) -> None:
        """Add a reply."""
        if self._file is None:
            self._replies[request] = reply
        else:
            self._places[request] = self._write({"request": request, "reply": reply.plain()})

    def keep_batch(self, batch: str, requests: list[str]) -> None:
        """Remember the requests of a batch; none, once their replies are kept."""
        if self._file is not None:
            self._write({"batch": batch, "requests": requests})
        self._note(batch, requests)

    def _note(self, batch: str, requests: list[str]) -> None:
        self.batches.pop(batch, None)
        if requests:
            self.batches[batch] = [str(request) for request in requests]

    def delete(self) -> None:
        """Delete the file, once what is in it is kept elsewhere."""
        if self.path is not None:
            self._known = (0, 0)
            self.path.unlink(missing_ok=True)
