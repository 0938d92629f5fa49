"""Makes every decision of a journal again, and proposes every configuration again.

A journal that was changed by hand has another checksum; one that was sealed again decides otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from parsl_rasda.errors import JournalError, OtherDecisionError, RunDirectoryError
from parsl_rasda.orchestration.assembly import build_machine, build_study_searcher
from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.events import Event, Instruction, StudyStarted, TrialProposed
from parsl_rasda.orchestration.journal import VERSION, Record, read, version_of
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import NoSearcher, as_begun
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.search.base import Multiobjective, Searcher
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import JSON, TrialId


@dataclass(frozen=True, slots=True)
class Count:
    """How many of a kind of thing are as they were recorded.

    Attributes:
        total: All of them.
        same: Those that were looked at, and are.
        difference: The first that is not, in a sentence; empty if there is none.
        unknown: Why the others could not be looked at, in words.
    """

    total: int
    same: int
    difference: str = ""
    unknown: str = ""

    def __add__(self, other: Count) -> Count:
        """Return the two together."""
        return Count(
            self.total + other.total,
            self.same + other.same,
            self.difference or other.difference,
            self.unknown or other.unknown,
        )


@dataclass(slots=True)
class _Made:
    """Counts the instructions that were the same."""

    count: int = 0

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        del event
        self.count += len(instructions)


@dataclass(slots=True)
class _ProposesAgain:
    """A searcher that is told what was proposed, and proposes it again; it stops at the first difference.

    What the user has added (``told``) it did not propose.
    """

    searcher: Searcher
    told: Collection[TrialId] = ()
    total: int = 0
    same: int = 0
    difference: str = ""

    def propose(self, trial: TrialId) -> Mapping[str, JSON] | None:
        return self.searcher.propose(trial)

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        if trial in self.told:
            self.searcher.restore(trial, config)
            return
        self.total += 1
        if self.difference:
            return
        now = self.searcher.propose(trial)
        if now is not None and dict(now) == dict(config):
            self.same += 1
            return
        self.difference = (
            f"trial {trial} was proposed {dict(config)}, the searcher now proposes {now and dict(now)}"
        )

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        self.searcher.observe(trial, epoch, metric)

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        self.searcher.conclude(trial, metric)

    def conclude_all(self, trial: TrialId, values: Sequence[float], violations: Sequence[float]) -> None:
        if isinstance(self.searcher, Multiobjective):
            self.searcher.conclude_all(trial, values, violations)
        else:
            self.searcher.conclude(trial, values[0])


@dataclass(frozen=True, slots=True)
class Decisions:
    """What came of making them again.

    Attributes:
        decisions: Instructions of the machine.
        configurations: Proposals of the searcher.
        machine: Where they lead.
        records: The journal, as far as it can be read.
    """

    decisions: Count
    configurations: Count
    machine: Machine = field(repr=False)
    records: tuple[Record, ...] = field(repr=False)


def check_decisions(run: RunDirectory, tune: TuneSpec, seed: int, optuna: str | None = None) -> Decisions:
    """Make all decisions of a journal again.

    Args:
        run: Where the journal of the search is.
        tune: What its stage declares.
        seed: Of the study.
        optuna: The version of Optuna that the run had, if that is known; its samplers may change with it.

    Raises:
        RunDirectoryError: If the journal has no records, or the file that says what the stage declared at
            first is damaged.
    """
    journal = run.journal
    records, damage = _readable(journal)
    if not records and not damage:
        raise RunDirectoryError(str(run.path), "its journal has no records", "Put a sound copy in its place.")
    total = sum(len(record.instructions) for record in records)
    machine, made = build_machine(as_begun(run, tune)), _Made()
    versions = [version_of(journal) if records else VERSION]
    warm = tune.searcher.warm_start
    told = {r.event.trial for r in records if isinstance(r.event, TrialProposed) and r.event.told}
    searcher = NoSearcher() if warm else _ProposesAgain(build_study_searcher(tune, seed), told)
    difference, unknown = damage, ""
    try:
        replay(records, machine, searcher, [made], versions=versions, file=str(journal))
    except OtherDecisionError as error:
        before = versions[error.section]
        if before == VERSION:
            difference = difference or str(error)
        else:
            unknown = (
                f"from line {error.line} on, parsl_rasda {before or 'of before 0.2'} decided otherwise than "
                f"{VERSION} would: those after it are not verified: let that version do it"
            )
    except JournalError as error:
        difference = difference or str(error)
    configurations = Count(0, 0, unknown=f"the search began with what {warm!r} had found")
    if isinstance(searcher, _ProposesAgain):
        configurations = _proposals(searcher, optuna)
        sizes = {r.event.num_samples for r in records if isinstance(r.event, StudyStarted)}
        if configurations.difference and tune.searcher.kind == "grid" and len(sizes) > 1:
            words = "the levels of a grid follow num_samples, which has changed"
            configurations = replace(configurations, difference="", unknown=words)
    return Decisions(Count(total, made.count, difference, unknown), configurations, machine, records)


def _readable(journal: Path) -> tuple[tuple[Record, ...], str]:
    """Return the records up to the first that is damaged, and what is wrong with that."""
    found: list[Record] = []
    try:
        found.extend(read(journal))
    except JournalError as error:
        return tuple(found), str(error)
    return tuple(found), ""


def _proposals(searcher: _ProposesAgain, optuna: str | None) -> Count:
    from importlib.metadata import version

    from parsl_rasda.search.optuna_searcher import OptunaSearcher

    is_optunas = isinstance(searcher.searcher, OptunaSearcher)
    if searcher.difference and is_optunas and optuna != (now := version("optuna")):
        words = f"the run had Optuna {optuna or 'of a version that it did not note'}, here is {now}"
        return Count(searcher.total, searcher.same, unknown=f"{searcher.difference}; {words}")
    return Count(searcher.total, searcher.same, searcher.difference)


def same_metrics(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Return whether all metrics have the same bits; all that are not a number are alike."""
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def same_bits(one: float, other: float) -> bool:
    """Return whether two numbers have the same bits; all that are not a number are alike."""
    return (math.isnan(one) and math.isnan(other)) or float(one).hex() == float(other).hex()
