"""Whether a batch system would take the pilot that a site asks for: it is asked, and nothing is queued.

Slurm judges the very job script (``sbatch --test-only``). PBS tells the limits of the queue (``qstat -Qf``),
with which the request is compared.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parsl_rasda.agent.slurm import run_command
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.pilot_counts import walltime_s
from parsl_rasda.study.site_base import SiteBase

_NO = {"false", "0"}
_NO_COMMAND = 127  # a shell's exit status
# What says that Slurm did not judge: its commands, libraries or controller are missing, or do not answer.
_UNREACHABLE = re.compile(
    r"configuration source|unable to contact slurm|timed out|sbatch: (command )?not found|no such file",
    re.IGNORECASE,
)
_DEFAULT_WALLTIME = "00:20:00"  # of Parsl's for PBS


@dataclass(frozen=True, slots=True)
class RequestAnswer:
    """What a batch system says of a request, in its own words where it has any."""

    is_taken: bool
    words: str


def check_request(site: SiteBase) -> RequestAnswer | None:
    """Return whether the batch system would take a site's pilot, or None if it cannot be asked.

    Raises:
        InvalidSettingError: If the provider refuses its arguments.
    """
    if not isinstance(site, ParslSiteSpec):
        return None
    if site.provider.type == "SlurmProvider":
        return _ask_slurm(site)
    if site.provider.type == "PBSProProvider":
        options = site.provider.options
        shown = run_command(
            "qstat", "-Q", "-f", "-F", "json", *filter(None, [str(options.get("queue") or "")])
        )
        walltime = str(options.get("walltime", _DEFAULT_WALLTIME))
        return read_queue(shown, nodes=site.nodes_per_pilot, walltime=walltime)
    return None


def _ask_slurm(site: ParslSiteSpec) -> RequestAnswer | None:
    from parsl.providers.errors import SubmitException

    from parsl_rasda.backends.parsl.htex import build_provider

    provider = build_provider(site, "")
    ask, answers = provider.execute_wait, list[tuple[int, str, str]]()

    def test_only(command: str, timeout: int | None = None) -> tuple[int, str, str]:
        answers.append(ask(command.replace("sbatch ", "sbatch --test-only ", 1), timeout))
        return answers[-1]

    with tempfile.TemporaryDirectory() as folder:
        provider.script_dir, provider.execute_wait = folder, test_only
        try:
            provider.submit("true", 1, "rasda")
        except SubmitException:  # there is no id of a job in the answer
            pass
        except subprocess.TimeoutExpired:
            return None
    code, out, err = answers[-1]
    words = " ".join(f"{err} {out}".split())
    if not words or code == _NO_COMMAND or _UNREACHABLE.search(words):
        return None
    return RequestAnswer(code == 0, words.removeprefix("sbatch: ") if code == 0 else words)


def read_queue(shown: str, *, nodes: int, walltime: str) -> RequestAnswer | None:
    """Return whether a queue of PBS takes a request, from what ``qstat -Qf -F json`` shows of it.

    Args:
        shown: Of one queue.
        nodes: That are asked for.
        walltime: That is asked for, ``HH:MM:SS``.
    """
    try:
        ((name, queue),) = json.loads(shown)["Queue"].items()
        mistakes = list(_beyond(queue, nodes, walltime))
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    if mistakes:
        return RequestAnswer(False, f"queue {name}: {'; '.join(mistakes)}")
    return RequestAnswer(True, f"{nodes} nodes for {walltime} are within the limits of queue {name}")


def _beyond(queue: Mapping[str, Any], nodes: int, walltime: str) -> Iterator[str]:  # JSON
    if str(queue.get("enabled")).lower() in _NO:
        yield "it takes no jobs (enabled = False)"
    if str(queue.get("started")).lower() in _NO:
        yield "it starts no jobs (started = False)"
    most, least = queue.get("resources_max", {}), queue.get("resources_min", {})
    if "nodect" in most and nodes > int(most["nodect"]):
        yield f"{nodes} nodes are asked for, at most {most['nodect']} are allowed"
    if "nodect" in least and nodes < int(least["nodect"]):
        yield f"{nodes} nodes are asked for, at least {least['nodect']} are wanted"
    if "walltime" in most and walltime_s(walltime) > walltime_s(str(most["walltime"])):
        yield f"a walltime of {walltime} is asked for, at most {most['walltime']} is allowed"
    if "walltime" in least and walltime_s(walltime) < walltime_s(str(least["walltime"])):
        yield f"a walltime of {walltime} is asked for, at least {least['walltime']} is wanted"
