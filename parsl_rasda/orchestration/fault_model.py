"""Whose fault it was: what the ends of attempts, taken together, tell of slots, nodes, world sizes and sites.

`exits.classify_exit` says of one end whom it blames. Here many ends are weighed: a slot on which different
trials fail in a row is set aside, a trial that fails where others fare well has failed. What is set aside is
tried again after a while. It reads no clock and starts nothing.

Only what happened since the controller took the study up counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from parsl_rasda.orchestration.events import JobEnded, SetAside
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.placement.cluster_state import NO_CAUTION, Caution
from parsl_rasda.placement.ledger import Slot
from parsl_rasda.types import Blame, NodeName, Outcome, Phase, PilotId, SiteName, TrialId, TrialState

_IN_A_ROW = 2  # failures without a success between, after which something is set aside
_SAME_TRIAL_IN_A_ROW = 3  # the same for a world size at which one trial fails again and again
_BACKOFF_S, _MAX_BACKOFF_S = 60.0, 1800.0  # until it is tried again: at first, and at most; doubled each time
_LAST_CHANCES_S = (5.0, 10.0, 20.0)  # until all is tried once more when nothing is left
_FREE_PREEMPTIONS = 5  # in a row without a finished epoch, after which the site is suspected
_FREE_CHECKPOINT_LOSSES = 5
_ENDING_S = 30.0  # before the end of a pilot: what is lost then is lost by that
_ALIKE = 3  # trials that fail alike before any has reported, after which no more are asked for


class Kind(StrEnum):
    """What may be at fault, beside a trial."""

    SLOT = "slot"
    NODE = "node"
    WORLD_SIZE = "world size"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A slot, a node, a world size on a site, or a site."""

    site: SiteName
    kind: Kind
    node: NodeName | None = None
    number: int = 0  # of the GPU, or the world size

    def __str__(self) -> str:
        match self.kind:
            case Kind.SLOT:
                return f"slot {self.node}:{self.number}"
            case Kind.NODE:
                return f"node {self.node}"
            case Kind.WORLD_SIZE:
                return f"world size {self.number} on site {self.site}"
            case Kind.SITE:
                return f"site {self.site}"


class Standing(StrEnum):
    """What becomes of a suspect."""

    USED = "used"
    ASIDE = "aside"
    PROBATION = "probation"  # used, and set aside again by its next failure


@dataclass(slots=True)
class _Record:
    """What is held against a suspect since its last success.

    Attributes:
        trials: Those that failed there, in order.
        times: How often it was set aside in a row.
        until: When it is tried again [s]; of a slot on probation, when it is trusted again.
    """

    trials: list[TrialId] = field(default_factory=list)
    standing: Standing = Standing.USED
    times: int = 0
    since: float = 0.0
    until: float = 0.0
    cause: str = ""


@dataclass(slots=True)
class _Doubt:
    """An end of a trial, on some slots, that may have been its own fault.

    Attributes:
        vouched_before: Other trials had finished epochs there, and nothing had gone wrong there since.
        unvouched: Its slots on which no other trial has finished an epoch since.
        is_counted: It is held against its slots, too.
        is_probe: It was on a slot that was tried again, and costs the trial nothing.
    """

    slots: frozenset[Slot]
    vouched_before: bool
    unvouched: set[Slot]
    is_counted: bool
    is_probe: bool = False

    @property
    def vouched_since(self) -> bool:
        return not self.unvouched


class FaultModel:
    """Weighs the ends of attempts; `judge` and `saw_epoch` are told what happens."""

    def __init__(self, search: SearchRecord) -> None:
        """Work on a search, whose ledger it keeps clear of what is set aside."""
        self._search = search
        self._ledger = search.cluster_state.ledger
        self._narrowest = search.settings.num_workers
        self._records: dict[Suspect, _Record] = {}
        self._doubts: dict[TrialId, list[_Doubt]] = {}
        self._is_narrow: set[TrialId] = set()  # they failed in wider jobs, which hide the slot
        self._good: dict[Slot, tuple[TrialId, ...]] = {}  # the last two that trained there, if all was well
        self._alike: list[tuple[str, TrialId, frozenset[Slot]]] = []
        self._last_chance_at: float | None = None
        self._last_chances = 0  # how many of them have passed
        self._ever_good: set[Slot] = set()  # a trial has finished an epoch there

    def restart(self) -> None:
        """Forget what happened under an earlier controller; all may have been mended."""
        for suspect, record in self._records.items():
            self._use(suspect, record)
        for memory in (self._records, self._doubts, self._is_narrow, self._good, self._alike):
            memory.clear()
        self._ever_good.clear()
        self._last_chance_at, self._last_chances = None, 0

    # ------------------------------------------------------------------------------- what happens

    def saw_epoch(self, trial: TrialRecord, job: LiveJob, epoch: int) -> list[tuple[TrialId, str]]:
        """Note that a trial has finished an epoch; return the trials that are at fault by that, and why."""
        slots = job.slots
        self._last_chance_at, self._last_chances = None, 0
        good, own = self._good, trial.id
        for slot in slots:
            before = good.get(slot, ())
            if not before or before[-1] != own:
                good[slot] = (*before[-1:], own)
                self._ever_good.add(slot)
        if not (self._records or self._doubts or self._is_narrow):
            return []  # there is nobody to trust again
        if epoch > max(trial.history, default=0):
            self._trust(trial)
        for suspect in self._suspects_of(job) if self._records else ():
            if (record := self._records.pop(suspect, None)) is not None:
                self._use(suspect, record)
        guilty: list[tuple[TrialId, str]] = []
        others = [(who, doubts) for who, doubts in self._doubts.items() if who != trial.id]
        for who, doubts in others:
            for doubt in doubts:
                doubt.unvouched -= slots
            accused = self._search.trials[who]
            if accused.job is None and not accused.state.is_final and (cause := self._guilt(accused)):
                guilty.append((who, f"{accused.reason} ({cause}; trial {trial.id} fares well there)"))
        return guilty

    def judge(self, trial: TrialRecord, job: LiveJob, event: JobEnded, *, was_told: bool) -> str | None:
        """Weigh the end of an attempt; return why its trial has failed, or None if it waits again."""
        if event.outcome is Outcome.FAILED:
            return self._own_fault(trial, job, event)
        is_pilots = event.blame in {Blame.PILOT, Blame.CONTROLLER} or (
            event.blame is Blame.UNSURE and self._is_going(job.placement.pilot)
        )
        if event.outcome is Outcome.PREEMPTED or is_pilots:
            trial.preemptions += 1
            if trial.preemptions > _FREE_PREEMPTIONS:  # a pilot that lives, and lets nobody train
                trial.preemptions = 0
                self._strike(Suspect(job.placement.site, Kind.SITE), trial, event.cause)
            return None
        if was_told:
            return None  # killed while leaving: its last epoch stands
        trial.reason = event.cause
        if event.unreadable is not None:
            if trial.checkpoint_losses > _FREE_CHECKPOINT_LOSSES:
                self._strike(Suspect(job.placement.site, Kind.SITE), trial, event.cause)
            return None
        if event.blame is Blame.UNSURE:
            return self._doubt(trial, job, event.cause)
        is_hidden = job.placement.world_size > self._narrowest
        for suspect in self._blamed(job, event):
            if suspect.kind is Kind.SLOT and is_hidden:
                self._is_narrow.add(trial.id)
                self._put_on_probation(suspect, event.cause)
            else:
                self._strike(suspect, trial, event.cause, is_sure=suspect.kind is Kind.SLOT)
        return None

    def _is_going(self, pilot: PilotId) -> bool:
        """Whether a pilot ends about now, so that what ends there may end by that."""
        pilots = self._search.pilots
        left_s = pilots.remaining_s(pilot, self._search.now)
        return not pilots.accepts_jobs(pilot) or (left_s is not None and left_s < _ENDING_S)

    def _own_fault(self, trial: TrialRecord, job: LiveJob, event: JobEnded) -> str:
        """Note a trial's own fault, and whether all fail alike; return it."""
        cause = event.cause or "the training function failed"
        if not (self._search.is_confirming or any(t.history for t in self._search.trials.values())):
            self._alike.append((cause, trial.id, job.slots))
        return cause

    @property
    def all_fail_alike(self) -> str:
        """The cause, if the first trials have failed alike: other configurations will not help."""
        trials, same = self._search.trials, self._alike
        if len(same) < _ALIKE or self._search.is_confirming:
            return ""
        is_one_cause = len({cause for cause, _, _ in same}) == 1
        if not is_one_cause or any(t.history for t in trials.values()):
            return ""
        differ = {repr(sorted(trials[who].config.items())) for _, who, _ in same}
        slots = frozenset[Slot]().union(*(there for _, _, there in same))
        has_others = any(self._ledger.slots_at(site) - slots for site in self._search.pilots.sites_up)
        if len(differ) == 1 or (has_others and len(slots) == 1):
            return ""
        return f"all trials fail alike: {same[0][0]}"

    # ------------------------------------------------------------------------------- those who are at fault

    def _blamed(self, job: LiveJob, event: JobEnded) -> list[Suspect]:
        """Return whom an end blames that is not the trial's, and not unsure."""
        site, nodes = job.placement.site, [n.node for n in job.placement.nodes]
        if event.blame is Blame.SLOT:
            return [s for s in self._suspects_of(job) if s.kind is Kind.SLOT]
        if event.blame is Blame.NODE:
            return [Suspect(site, Kind.NODE, node) for node in nodes]
        if event.phase not in {Phase.NO_RANK, Phase.MET}:
            return [Suspect(site, Kind.SITE)]
        if job.placement.world_size > self._narrowest:
            return [Suspect(site, Kind.WORLD_SIZE, number=job.placement.world_size)]
        return [Suspect(site, Kind.NODE, node) for node in nodes]

    def _suspects_of(self, job: LiveJob) -> list[Suspect]:
        """Return all that takes part in a job."""
        place = job.placement
        return [
            *(Suspect(place.site, Kind.SLOT, n.node, gpu) for n in place.nodes for gpu in n.gpus),
            *(Suspect(place.site, Kind.NODE, n.node) for n in place.nodes),
            Suspect(place.site, Kind.WORLD_SIZE, number=place.world_size),
            Suspect(place.site, Kind.SITE),
        ]

    def _strike(self, suspect: Suspect, trial: TrialRecord, cause: str, *, is_sure: bool = False) -> None:
        """Hold a failure against a suspect; set it aside if that is enough."""
        record = self._records.setdefault(suspect, _Record())
        record.trials.append(trial.id)
        record.cause = cause
        is_slot = suspect.kind is Kind.SLOT
        count = len(set(record.trials)) if is_slot else len(record.trials)
        if record.standing is Standing.ASIDE:
            return
        if is_sure or record.standing is Standing.PROBATION or count >= _IN_A_ROW:
            self._set_aside(suspect, record)

    def _set_aside(self, suspect: Suspect, record: _Record) -> None:
        now = self._search.now
        if record.standing is not Standing.PROBATION or record.times == 0:
            record.since = now
        record.standing = Standing.ASIDE
        record.until = now + min(_BACKOFF_S * 2**record.times, _MAX_BACKOFF_S)
        record.times = min(record.times + 1, 10)
        match suspect.kind:
            case Kind.SLOT:
                self._ledger.set_aside(self._slots_of(suspect))
            case Kind.NODE:
                self._ledger.set_aside(self._slots_of(suspect))
            case Kind.WORLD_SIZE:
                self._ledger.refuse(suspect.site, suspect.number)
            case Kind.SITE:
                self._ledger.refuse(suspect.site)
        self._search.instructions.append(
            SetAside(str(suspect), suspect.site, record.cause, record.until, record.times)
        )

    def _use(self, suspect: Suspect, record: _Record, *, on_probation: bool = False) -> None:
        """Let a suspect be used again."""
        if record.standing is Standing.USED:
            return
        record.standing = Standing.PROBATION if on_probation else Standing.USED
        record.until = self._search.now + _BACKOFF_S
        match suspect.kind:
            case Kind.SLOT:
                slots = self._slots_of(suspect) - self._aside_by_node()
                self._ledger.restore(slots, on_probation=on_probation)
            case Kind.NODE:
                slots = self._slots_of(suspect)
                self._ledger.restore(s for s in slots if not self._is_aside(s))
            case Kind.WORLD_SIZE:
                self._ledger.allow(suspect.site, suspect.number)
            case Kind.SITE:
                self._ledger.allow(suspect.site)

    def _slots_of(self, suspect: Suspect) -> frozenset[Slot]:
        """Return the slot, or those of the node."""
        if suspect.kind is Kind.SLOT and suspect.node is not None:
            return frozenset({(suspect.site, suspect.node, suspect.number)})
        return self._ledger.slots_at(suspect.site, suspect.node)

    def _is_aside(self, slot: Slot) -> bool:
        record = self._records.get(Suspect(slot[0], Kind.SLOT, slot[1], slot[2]))
        return record is not None and record.standing is not Standing.USED

    def _aside_by_node(self) -> set[Slot]:
        nodes = (s for s, r in self._records.items() if s.kind is Kind.NODE and r.standing is Standing.ASIDE)
        return {slot for s in nodes for slot in self._slots_of(s)}

    # ------------------------------------------------------------------------------- those who may be

    def _doubt(self, trial: TrialRecord, job: LiveJob, cause: str) -> str | None:
        """Weigh an end that may be the trial's fault, or that of where it ran."""
        slots, width = job.slots, job.placement.world_size
        trained = [set(self._good.pop(slot, ())) - {trial.id} for slot in slots]
        vouched = all(trained)
        if width > self._narrowest:  # it hides which slot it was: the trial finds out in narrow jobs
            self._is_narrow.add(trial.id)
            self._suspect_width(trial, job, cause)
            return None
        probed = [s for s in self._suspects_of(job) if s.kind is Kind.SLOT and self._is_on_probation(s)]
        for suspect in probed:
            self._strike(suspect, trial, cause)
        mine = self._doubts.setdefault(trial.id, [])
        if probed:
            mine.append(_Doubt(slots, vouched, set(slots), is_counted=True, is_probe=True))
            return None
        trial.retries += 1
        is_clean = not any(self._is_evidence(d) and d.slots.isdisjoint(slots) for d in mine)
        # What has been good before is not suspected for trials that have never trained: they may all be bad.
        is_counted = is_clean and (bool(trial.history) or not slots <= self._ever_good)
        mine.append(_Doubt(slots, vouched, set(slots), is_counted))
        if is_counted:
            for suspect in self._suspects_of(job):
                if suspect.kind is Kind.SLOT:
                    self._strike(suspect, trial, cause)
        guilt = self._guilt(trial)
        return f"{cause} ({guilt})" if guilt else None

    def _suspect_width(self, trial: TrialRecord, job: LiveJob, cause: str) -> None:
        site, width = job.placement.site, job.placement.world_size
        suspect = Suspect(site, Kind.WORLD_SIZE, number=width)
        record = self._records.setdefault(suspect, _Record())
        seen = [*record.trials, trial.id]
        is_enough = len(set(seen)) >= _IN_A_ROW or len(seen) >= _SAME_TRIAL_IN_A_ROW
        if is_enough or record.standing is Standing.PROBATION:
            self._strike(suspect, trial, cause)
        else:
            record.trials, record.cause = seen, cause
        for slot in self._suspects_of(job):
            if slot.kind is Kind.SLOT:
                self._put_on_probation(slot, cause)

    def _put_on_probation(self, slot: Suspect, cause: str) -> None:
        """Let only narrow jobs use a slot until one has fared well there, or for a while."""
        record = self._records.setdefault(slot, _Record(cause=cause))
        if record.standing is Standing.USED:
            record.standing, record.until = Standing.PROBATION, self._search.now + _BACKOFF_S
            self._ledger.restore(self._slots_of(slot), on_probation=True)

    def _is_on_probation(self, suspect: Suspect) -> bool:
        record = self._records.get(suspect)
        return record is not None and record.standing is Standing.PROBATION

    def _is_evidence(self, doubt: _Doubt) -> bool:
        """Whether an end counts against its trial: it does not where something is set aside."""
        return not (doubt.is_probe or any(self._is_aside(slot) for slot in doubt.slots))

    def _guilt(self, trial: TrialRecord) -> str:
        """Return why a trial is at fault itself, or nothing if that is not certain."""
        doubts = [d for d in self._doubts.get(trial.id, ()) if self._is_evidence(d)]
        apart = [d for d in doubts if any(d.slots.isdisjoint(other.slots) for other in doubts)]
        if any(d.vouched_before or d.vouched_since for d in apart):
            return f"{len(doubts)} attempts on different slots"
        is_worn = len(doubts) > self._search.settings.max_retries
        if is_worn and any(d.vouched_since for d in doubts):
            return f"{len(doubts)} attempts"
        return ""

    def _trust(self, trial: TrialRecord) -> None:
        """Clear a trial that got further; what it failed on before is suspected by that."""
        self._is_narrow.discard(trial.id)
        for doubt in self._doubts.pop(trial.id, ()):
            for site, node, gpu in sorted(doubt.unvouched if not doubt.is_counted else ()):
                self._strike(Suspect(site, Kind.SLOT, node, gpu), trial, trial.reason)

    def doubtful(self) -> list[TrialRecord]:
        """Return the trials that may be at fault and wait; where they may start changes with what happens."""
        if not self._doubts:
            return []
        found = (self._search.trials[who] for who in self._doubts)
        return [trial for trial in found if trial.state is TrialState.WAITING]

    def forget(self, trial: TrialId) -> None:
        """Forget a trial that has ended; what it failed on stays suspected."""
        self._doubts.pop(trial, None)
        self._is_narrow.discard(trial)

    def _has_fresh(self) -> bool:
        """Whether a trial that has not failed yet is to come: what is tried again is better tried by that."""
        waiting = self._search.cluster_state.waiting
        return self._search.unproposed > 0 or any(w.trial not in self._doubts for w in waiting)

    def caution(self, trial: TrialRecord, site: SiteName | None) -> Caution:
        """Return where a trial must not start now."""
        doubts = self._doubts.get(trial.id, [])
        is_narrow = trial.id in self._is_narrow
        if not doubts:
            return Caution(is_narrow=True) if is_narrow else NO_CAUTION
        cluster, growth = self._search.cluster_state, self._search.growth
        avoid = Caution(frozenset[Slot]().union(*(d.slots for d in doubts)), is_narrow=True)
        workers = trial.stretch.workers
        needed = growth.needs(workers, self._narrowest)
        counted = sum(self._is_evidence(d) for d in doubts)
        has_others = cluster.can_ever_start(needed, (workers, site, avoid))
        has_fresh = counted < len(doubts) and self._has_fresh()
        if has_others or has_fresh or counted > self._search.settings.max_retries:
            return avoid  # elsewhere, or once others have shown what they do there
        return Caution(is_narrow=True)

    # ------------------------------------------------------------------------------- time

    @property
    def wake_at(self) -> float | None:
        """When something that is set aside is to be tried again [s], or None."""
        if not self._records:
            return self._last_chance_at
        times = [r.until for r in self._records.values() if r.standing is Standing.ASIDE]
        if self._last_chance_at is not None:
            times.append(self._last_chance_at)
        return min(times, default=None)

    def retry_due(self) -> bool:
        """Let what has been aside for long enough be tried again; return whether anything was."""
        now, found = self._search.now, False
        if self._last_chance_at is not None and now >= self._last_chance_at:
            self._last_chance_at = None
            self._last_chances += 1
            return self._try_all()
        for suspect, record in self._records.items():
            if record.standing is not Standing.USED and now >= record.until:
                is_aside = record.standing is Standing.ASIDE
                found |= is_aside or suspect.kind is Kind.SLOT
                if is_aside or suspect.kind is Kind.SLOT:  # which is used by narrow jobs alone till then
                    self._use(suspect, record, on_probation=is_aside)
        return found

    def _try_all(self) -> bool:
        aside = [(s, r) for s, r in self._records.items() if r.standing is Standing.ASIDE]
        for suspect, record in aside:
            self._use(suspect, record, on_probation=True)
        return bool(aside)

    # ------------------------------------------------------------------------------- standstill

    def hopes(self) -> bool:
        """Whether something that is set aside may still let a standstill end: all is tried once more."""
        is_over = self._last_chances == len(_LAST_CHANCES_S)
        if is_over or not any(r.standing is Standing.ASIDE for r in self._records.values()):
            return False
        if self._last_chance_at is None:
            self._last_chance_at = self._search.now + _LAST_CHANCES_S[self._last_chances]
        return True

    def last_verdicts(self) -> list[tuple[TrialId, str]]:
        """Return the trials that are at fault, as nobody else can show more, and why.

        They failed again and again where others had fared well just before, and none had failed.
        """
        guilty = []
        for who, doubts in self._doubts.items():
            trial = self._search.trials[who]
            counted = [d for d in doubts if self._is_evidence(d)]
            is_worn = len(counted) > self._search.settings.max_retries
            is_last = trial.job is None and not trial.state.is_final
            slots = frozenset[Slot]().union(*(d.slots for d in counted))
            others = (d for other, found in self._doubts.items() if other != who for d in found)
            is_alone = all(d.slots.isdisjoint(slots) for d in others)
            if is_last and is_worn and is_alone and any(d.vouched_before for d in counted):
                guilty.append((who, f"{trial.reason} ({len(counted)} attempts)"))
        return guilty

    def give_up(self) -> str:
        """Set aside where trials failed that nobody can judge; return why nothing can go on, or nothing."""
        for who, doubts in self._doubts.items():
            for doubt in doubts if not self._search.trials[who].state.is_final else ():
                for site, node, gpu in sorted(doubt.slots):
                    suspect = Suspect(site, Kind.SLOT, node, gpu)
                    record = self._records.setdefault(suspect, _Record(cause=self._search.trials[who].reason))
                    if record.standing is not Standing.ASIDE:
                        self._set_aside(suspect, record)
        aside = [(s, r) for s, r in self._records.items() if r.standing is Standing.ASIDE]
        by_cause: dict[str, list[str]] = {}
        for suspect, record in sorted(aside, key=lambda pair: str(pair[0])):
            by_cause.setdefault(record.cause, []).append(str(suspect))
        return "; ".join(f"{_listed(names)}: {cause}" for cause, names in by_cause.items())

    @property
    def set_aside(self) -> list[dict[str, object]]:
        """What is set aside, for the summary."""
        return [
            {
                "what": suspect.kind.value,
                "name": str(suspect),
                "site": suspect.site,
                "node": suspect.node,
                "slot": f"{suspect.node}:{suspect.number}" if suspect.kind is Kind.SLOT else None,
                "world_size": suspect.number if suspect.kind is Kind.WORLD_SIZE else None,
                "since": record.since,
                "cause": record.cause,
                "until": record.until,
            }
            for suspect, record in sorted(self._records.items(), key=lambda pair: str(pair[0]))
            if record.times and record.standing is not Standing.USED
        ]


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
