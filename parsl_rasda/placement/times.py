"""How long an epoch and a restart take: what was measured, else what must be assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sortedcontainers import SortedList

from parsl_rasda.types import SiteName, TrialId

_ABSURDLY_SHORT_S, _ABSURD_S = 1e-9, 1e9  # no epoch lasts a nanosecond, or 30 years: a clock was wrong
_LEAST_GAIN = -10.0  # binary logarithm of the worst efficiency that is believed
_ENOUGH = 4  # restarts seen before the assumption, and what launches took, are left behind
_ANOTHER = 0.1  # two figures that differ by less are the same
_LEAST_WORK = 0.05  # of a stretch is training
_ABSURD = 10.0  # times the second slowest and the assumption: a node that hung once, no usual restart


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is believed before anything is measured.

    Attributes:
        epoch_s: One epoch of a typical trial on one slot [s].
        restart_s: Restart of a trial at another world size [s]; an upper estimate keeps the promise.
        efficiency: Parallel efficiency of one doubling of the world size, in (0.5, 1].
    """

    epoch_s: float = 60.0
    restart_s: float = 10.0
    efficiency: float = 0.9

    def speedup(self, ratio: float) -> float:
        """Return how much faster an epoch is on ``ratio`` times as many slots."""
        return _speedup(ratio, self.efficiency)


class Times:
    """Epoch times per trial and world size, the efficiency of a doubling, and the slowest restart.

    Epochs are learnt per site, because machines differ. The restart is the slowest ever seen: an
    underestimate would let a trial widen for nothing, and break the promise of `elastic`; an
    overestimate only costs speed. One alone that is absurdly slower than all others does not count
    until a second one like it comes: a node that hung once would otherwise end all growth.

    A script that cannot tell when its first epoch began shows stretches: its start and some epochs. Two
    of one trial that hold different work tell the start from the epochs; the median of all pairs counts.
    """

    def __init__(self, assumed: Assumed) -> None:
        self._assumed = assumed
        self._measured: dict[TrialId, dict[int, float]] = {}
        self._sorted: dict[TrialId, tuple[SiteName, float]] = {}  # its epoch on one slot, as it is sorted in
        self._unsorted: dict[TrialId, tuple[SiteName, float]] = {}  # the newest, until somebody asks
        self._sites: dict[SiteName, SortedList] = {}
        self._all_sites = SortedList()  # empty as long as there is only one
        self._doublings = SortedList([assumed.efficiency])
        self._efficiency = assumed.efficiency
        self._restarts = SortedList()
        self._launches: dict[SiteName, SortedList] = {}
        self._releases: dict[SiteName, SortedList] = {}
        self._restart_s = assumed.restart_s
        self._stretches: dict[SiteName, dict[TrialId, list[_Stretch]]] = {}
        self._starts: dict[SiteName, SortedList] = {}
        self._applied_s: dict[SiteName, float] = {}  # the start that epochs of stretches are now without

    @property
    def efficiency(self) -> float:
        """Median efficiency of a doubling: the assumed value and every one observed."""
        return self._efficiency

    @property
    def restart_s(self) -> float:
        """Upper estimate of a restart [s]: a few must be seen before they alone are believed."""
        return self._restart_s

    def launch_s(self, site: SiteName) -> float:
        """Return what a launch usually takes on a site [s]: the median seen, or a restart as assumed."""
        seen = self._launches.get(site)
        return float(seen[len(seen) // 2]) if seen else self._assumed.restart_s

    def release_s(self, site: SiteName) -> float:
        """Return an upper estimate of how long slots take to be free once their job was told to leave [s].

        Twice the slowest seen on a site. Before that a restart as assumed, of which a release is a part.
        """
        seen = self._releases.get(site)
        return 2 * _slowest(seen, self._assumed.restart_s) if seen else self._assumed.restart_s

    def epoch_s(self, trial: TrialId, world_size: int, site: SiteName) -> float:
        """Return the time of one epoch [s] at a world size, measured there or scaled to it."""
        known = self._measured.get(trial)
        if known:
            if world_size in known:
                return known[world_size]
            nearest = min(known, key=lambda w: (abs(math.log2(w / world_size)), w))
            return known[nearest] / self._speedup(world_size / nearest)
        singles = self._medians().get(site)
        single = float(singles[len(singles) // 2]) if singles else self._assumed.epoch_s
        return single / self._speedup(world_size)

    def typical_epoch_s(self, world_size: int) -> float | None:
        """Return the median time of an epoch at a world size over all trials and sites [s], if seen."""
        sites = self._medians()
        singles = self._all_sites or next(iter(sites.values()), None)
        return float(singles[len(singles) // 2]) / self._speedup(world_size) if singles else None

    def seen_epoch_s(self, trial: TrialId, world_size: int) -> float | None:
        """Return the time of an epoch at a world size [s], that of the trial or else the median, if seen."""
        if trial in self._measured:
            return self.epoch_s(trial, world_size, SiteName(""))
        return self.typical_epoch_s(world_size)

    @property
    def seen_launch_s(self) -> float:
        """What a launch usually takes where it takes least [s]; 0 if none was seen."""
        return min((float(seen[len(seen) // 2]) for seen in self._launches.values()), default=0.0)

    def saw_epoch(self, trial: TrialId, world_size: int, site: SiteName, seconds: float) -> None:
        """Learn the time of one epoch [s]."""
        if not _ABSURDLY_SHORT_S < seconds < _ABSURD_S:
            return
        known = self._measured.get(trial)
        if known is None:
            known = self._measured[trial] = {}
        elif self._site_of(trial) != site:
            known.clear()
        if world_size not in known and known:
            nearest = min(known, key=lambda w: (abs(math.log2(w / world_size)), w))
            gain = math.log2(known[nearest] / seconds) / math.log2(world_size / nearest)
            self._doublings.add(math.pow(2.0, min(0.0, max(gain - 1.0, _LEAST_GAIN))))
            self._efficiency = float(self._doublings[len(self._doublings) // 2])
        known[world_size] = seconds
        self._unsorted[trial] = (site, seconds * _speedup(world_size, self._efficiency))

    def saw_restart(self, seconds: float) -> None:
        """Learn a restart at another world size [s], from the boundary to the first step done."""
        self._restarts.add(seconds)
        self._relearn_restart()

    def saw_launch(self, seconds: float, site: SiteName) -> None:
        """Learn a launch that was no resize [s]; they stand in for restarts until enough are seen."""
        seen = self._launches.get(site)
        if seen is None:
            seen = self._launches[site] = SortedList()
        is_usual = len(seen) >= _ENOUGH and seconds <= seen[-2]  # only the two slowest count
        seen.add(seconds)
        if not is_usual:
            self._relearn_restart()

    def saw_release(self, seconds: float, site: SiteName) -> None:
        """Learn how long a job took to leave after it was told to [s]; only the two slowest count."""
        seen = self._releases.get(site)
        if seen is None:
            seen = self._releases[site] = SortedList()
        if len(seen) < _ENOUGH or seconds > seen[-2]:
            seen.add(seconds)

    def saw_stretch(
        self, trial: TrialId, world_size: int, site: SiteName, epochs: int, seconds: float
    ) -> None:
        """Learn from a script's whole run.

        Args:
            trial: Whose it was.
            world_size: Ranks.
            site: Where.
            epochs: How many it trained.
            seconds: From its order to its report [s], the start included.
        """
        if epochs < 1 or not _ABSURDLY_SHORT_S < seconds < _ABSURD_S:
            return
        known = self._stretches.setdefault(site, {}).setdefault(trial, [])
        new = _Stretch(world_size, epochs, epochs / self._speedup(world_size), seconds)
        for start_s in (s for s in map(new.start_beside, known) if s is not None):
            self._starts.setdefault(site, SortedList()).add(start_s)
            self.saw_launch(start_s, site)
            self.saw_restart(start_s)  # a script begins anew in either case
        known.append(new)
        start_s = self.script_start_s(site) or 0.0
        applied_s = self._applied_s.get(site, 0.0)
        if abs(start_s - applied_s) > _ANOTHER * max(start_s, applied_s):
            self._applied_s[site] = start_s
            for other, stretches in self._stretches[site].items():
                if other != trial and self._site_of(other) == site:
                    self._saw_epochs(other, site, stretches)
        self._saw_epochs(trial, site, known)

    def script_start_s(self, site: SiteName) -> float | None:
        """Return the usual start of scripts on a site, from order to first epoch [s], if it is known."""
        starts = self._starts.get(site)
        return float(starts[len(starts) // 2]) if starts else None

    def _site_of(self, trial: TrialId) -> SiteName:
        return (self._unsorted.get(trial) or self._sorted[trial])[0]

    def _saw_epochs(self, trial: TrialId, site: SiteName, stretches: Sequence[_Stretch]) -> None:
        start_s = self._applied_s.get(site, 0.0)
        self._measured[trial] = {s.world_size: s.epoch_s(start_s) for s in stretches}
        newest = stretches[-1]
        self._unsorted[trial] = (site, newest.epoch_s(start_s) * self._speedup(newest.world_size))

    def _speedup(self, ratio: float) -> float:
        return _speedup(ratio, self.efficiency)

    def _relearn_restart(self) -> None:
        assumed_s = self._assumed.restart_s
        self._restart_s = _slowest(self._restarts, assumed_s)
        if len(self._restarts) < _ENOUGH:
            launches = (_slowest(seen, assumed_s) for seen in self._launches.values())
            self._restart_s = max(assumed_s, *launches, self._restart_s)

    def _medians(self) -> dict[SiteName, SortedList]:
        """Return the epochs on one slot that were measured on each site, sorted."""
        for trial, (site, seconds) in self._unsorted.items():
            old = self._sorted.get(trial)
            if old is not None:
                self._sites[old[0]].remove(old[1])
            if site not in self._sites:
                self._sites[site] = SortedList()
            self._sites[site].add(seconds)
            if self._all_sites:
                if old is not None:
                    self._all_sites.remove(old[1])
                self._all_sites.add(seconds)
            elif len(self._sites) > 1:
                self._all_sites.update(s for singles in self._sites.values() for s in singles)
            self._sorted[trial] = (site, seconds)
        self._unsorted.clear()
        return self._sites


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A run of a script.

    Attributes:
        work: Its epochs, in those of one slot.
        seconds: What start and epochs took [s].
    """

    world_size: int
    epochs: int
    work: float
    seconds: float

    def start_beside(self, other: _Stretch) -> float | None:
        """Return the start that both have in common [s], if they differ enough to tell it."""
        more = self.work - other.work
        if abs(more) < _ANOTHER * max(self.work, other.work):
            return None
        start_s = (self.work * other.seconds - other.work * self.seconds) / more
        return min(max(start_s, 0.0), self.seconds, other.seconds)

    def epoch_s(self, start_s: float) -> float:
        """Return the time of one epoch without the start [s], which cannot be all of it."""
        return max(self.seconds - start_s, _LEAST_WORK * self.seconds) / self.epochs


def _slowest(seen: SortedList, usual_s: float) -> float:
    """Return the longest time but for a single absurd one [s], or 0 if there is none."""
    lone = len(seen) >= _ENOUGH and seen[-1] > _ABSURD * max(seen[-2], usual_s)
    return float(seen[-2 if lone else -1]) if seen else 0.0


@lru_cache(maxsize=4096)
def _speedup(ratio: float, efficiency: float) -> float:
    return ratio * math.pow(efficiency, math.log2(ratio))
