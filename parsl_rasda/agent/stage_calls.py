"""The stages of a study on a Globus Compute site; a folder identifies each call.

A call has a folder, and in it one folder for each time that it is begun: with its claim (who sent it
first), its heartbeat, its answer, and `stop` once it is to end. Whatever is begun waits until all that
was begun before it has ended: both write into the same folders of the stage.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.agent.heartbeat import (
    CLAIM,
    HEARTBEAT_S,
    LEAVE_S,
    Heartbeat,
    Message,
    read,
    silence_of,
)
from parsl_rasda.atomic_files import create_file
from parsl_rasda.errors import StageFailedError
from parsl_rasda.private_files import make_private, private_files
from parsl_rasda.protocol import STOP

ANSWER = "answer.json"


@private_files()
def stage(folder: str, sender: str, target: str, arguments: Sequence[object]) -> Message | None:
    """Call ``package.module:function``, once for each folder however often the task is delivered.

    Args:
        folder: Of this call, named by the number of times that it was begun.
        sender: Who sends it.
        target: The function.
        arguments: Plain JSON.

    Returns:
        ``result``, which must be plain JSON; or ``cause`` (and ``stage``) of a failure; None while another
        task has the call.
    """
    directory = Path(folder)
    make_private(directory)
    if create_file(directory / CLAIM, sender):
        with _StageHeartbeat(directory) as heartbeat:
            _end_earlier(directory)
            reason = read(directory / STOP)
            found = _call(target, arguments) if reason is None else {"cause": f"{reason} before it started"}
            heartbeat.answer(found)
    text = read(directory / ANSWER)
    answer: Message | None = None if text is None else json.loads(text)
    return answer


def poll_stages(folders: Sequence[str]) -> list[Message]:
    """Return of each call whether it was ``answered``, how long it has been silent [s], and its sender.

    The last two are None of a call that no task has claimed.
    """
    return [
        {
            "folder": folder,
            "answered": (Path(folder) / ANSWER).exists(),
            "silent_s": silence_of(Path(folder)) if (Path(folder) / CLAIM).exists() else None,
            "sender": read(Path(folder) / CLAIM),
        }
        for folder in folders
    ]


def stop_stages(folders: Sequence[str], reason: str) -> None:
    """Tell calls to end, or not to begin."""
    for folder in folders:
        make_private(Path(folder))
        create_file(Path(folder) / STOP, reason)


def _call(target: str, arguments: Sequence[object]) -> Message:
    module, _, name = target.partition(":")
    try:
        found = {"result": getattr(importlib.import_module(module), name)(*arguments)}
        json.dumps(found)
    except StageFailedError as error:
        return {"cause": error.cause, "stage": error.stage}
    except Exception as error:  # noqa: BLE001  it becomes the answer
        return {"cause": f"{type(error).__name__}: {error}"}
    return found


def _end_earlier(directory: Path) -> None:
    """Tell what was begun before of the same call to end, and wait until it has."""
    earlier = [
        d for d in directory.parent.iterdir() if d.name.isdecimal() and int(d.name) < int(directory.name)
    ]
    stop_stages([str(d) for d in earlier], "it was begun again")
    give_up = time.monotonic() + LEAVE_S
    while time.monotonic() < give_up and any(_is_alive(d) for d in earlier):
        time.sleep(HEARTBEAT_S / 4)


def _is_alive(directory: Path) -> bool:
    is_claimed, is_answered = (directory / CLAIM).exists(), (directory / ANSWER).exists()
    return is_claimed and not is_answered and silence_of(directory) < 3 * HEARTBEAT_S


class _StageHeartbeat(Heartbeat):
    """Also ends a stage, and what it has started, when it is told to or the pilot's manager is gone.

    Nobody else would end it, and it would write into its folder beside the stage that takes its place.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._parent = os.getppid()
        self._answering = threading.Lock()  # never released by the thread that ends the stage

    def __enter__(self) -> Self:
        os.environ[orphan_reaper.JOB_VARIABLE] = str(self._directory)
        return super().__enter__()

    def __exit__(self, *what: object) -> None:
        super().__exit__(*what)
        os.environ.pop(orphan_reaper.JOB_VARIABLE, None)

    def answer(self, found: Message) -> None:
        """Write the answer, unless the stage is being ended."""
        with self._answering:
            create_file(self._directory / ANSWER, json.dumps(found))

    def _watch(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            reason, is_orphan = read(self._directory / STOP), os.getppid() != self._parent
            if (reason is not None or is_orphan) and not (self._directory / ANSWER).exists():
                self._answering.acquire()
                orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, str(self._directory), grace_s=0.0)
                if reason is not None:  # an orphan has no answer: the next controller begins it again
                    create_file(self._directory / ANSWER, json.dumps({"cause": reason}))
                os._exit(1)
            self._write()
