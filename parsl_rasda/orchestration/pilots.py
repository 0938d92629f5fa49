"""Which pilots are requested, up or idle, and which sites are not asked for pilots for a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from parsl_rasda.orchestration.events import PilotEnded, PilotStarted, RequestPilot
from parsl_rasda.protocol import DEADLINE_MARGIN_S
from parsl_rasda.types import PilotId, SiteName

# Before a pilot's end, in which a job that leaves untold leaves because of it; half of a short pilot's time.
_LAST_S = 600.0
_MAX_FAILURES = 3  # pilots in a row that came to nothing, after which a site is not asked for a while:
_BACKOFF_S, _MAX_BACKOFF_S = 60.0, 1800.0  # at first, and at most; doubled by every further failure
_REFUSED_S, _MAX_REFUSED_S = 2.0, 600.0  # the same for refusals, from the first one on
_SHORT_S = 60.0  # an idle pilot that ends so soon came to nothing, too


class PilotRegistry:
    """Knows the pilots and the sites they come from; the machine decides when one is wanted."""

    def __init__(self) -> None:
        """Begin without pilots."""
        self._count = 0  # of all requests: no id comes twice
        self._clear()

    def _clear(self) -> None:
        self.up: dict[PilotId, PilotStarted] = {}
        self.dated: set[PilotId] = set()  # up, and known to end
        self.requested: dict[PilotId, SiteName] = {}
        self.closing: set[PilotId] = set()  # up, but nothing starts there any more
        self.lost: set[PilotId] = set()  # of these, those that end by themselves
        self._released: set[PilotId] = set()  # of these, those that were given back
        self._idle_released: set[PilotId] = set()  # of these, those for want of work
        self._jobs: Counter[PilotId] = Counter()
        self.idle_since: dict[PilotId, float] = {}  # up and without a job
        self._had_job: set[PilotId] = set()
        self._made_progress: set[PilotId] = set()  # a trial got further there
        self.deferred: Counter[SiteName] = Counter()  # gone, and not replaced for now
        self.least: Counter[SiteName] = Counter()  # wanted whether anybody waits or not
        self._retry_at: dict[SiteName, float] = {}  # when a site that failed may be asked again
        self._failures: Counter[SiteName] = Counter()  # pilots in a row that came to nothing
        self._refusals: Counter[SiteName] = Counter()  # times in a row that none came up: epochs do not count

    def restart(self) -> None:
        """Forget the pilots of an earlier controller; their ids do not come again."""
        self._clear()

    @property
    def none_left(self) -> bool:
        """Whether no pilot is up and none is awaited."""
        return not self.up and not self.requested

    @property
    def is_hopeless(self) -> bool:
        """Whether no pilot is up, none is awaited, and no site is to be asked again soon."""
        return self.none_left and not self.awaits_retry

    @property
    def awaited(self) -> bool:
        """Whether a pilot is to come or to be replaced, or could be asked for."""
        return bool(self.requested or self.closing or self.awaits_retry)

    def will_change(self, now: float) -> bool:
        """Whether a pilot is to come or to go, or a site is to be asked that nobody could ask by now."""
        return bool(self.requested or self.closing) or any(at > now for at in self._refused_until)

    @property
    def awaits_retry(self) -> bool:
        """Whether a site has refused a pilot and is not given up yet: it will be asked again soon."""
        return bool(self._refused_until)

    @property
    def _refused_until(self) -> list[float]:
        cooling = self.cooling_down.items()
        return [at for site, at in cooling if self._refusals[site] and not self.is_given_up(site)]

    def accepts_jobs(self, pilot: PilotId) -> bool:
        """Whether jobs may start on a pilot."""
        return pilot in self.up and pilot not in self.closing

    def has(self, site: SiteName) -> bool:
        """Whether a pilot of a site is up or awaited."""
        return site in self.requested.values() or any(p.site == site for p in self.up.values())

    @property
    def sites_up(self) -> set[SiteName]:
        """Sites with a pilot that is up."""
        return {pilot.site for pilot in self.up.values()}

    def must_back_off(self, site: SiteName) -> bool:
        """Whether the last pilots of a site came to nothing, so that it is not asked for a while."""
        return self._failures[site] >= _MAX_FAILURES or self._refusals[site] > 0

    def is_given_up(self, site: SiteName) -> bool:
        """Whether so many pilots of a site came to nothing that nobody waits for another."""
        return max(self._failures[site], self._refusals[site]) >= _MAX_FAILURES

    # ------------------------------------------------------------------------------- coming and going

    def request(self, site: SiteName) -> RequestPilot:
        """Return the request for one more pilot of a site; its id is new."""
        pilot = PilotId(f"{site}-{self._count}")
        self._count += 1
        self.requested[pilot] = site
        return RequestPilot(pilot, site)

    def note_requested(self, request: RequestPilot) -> None:
        """Note a request of another version; its id does not come again."""
        self._count = max(self._count, int(request.pilot.rpartition("-")[2]) + 1)
        self.requested[request.pilot] = request.site

    def started(self, event: PilotStarted) -> bool:
        """Note that a pilot is up; return whether it was awaited."""
        if self.requested.pop(event.pilot, None) is None:
            return False
        self.up[event.pilot] = event
        if event.deadline is not None:
            self.dated.add(event.pilot)
        self._refusals[event.site] = 0
        self.idle_since[event.pilot] = event.at
        return True

    def ended(self, event: PilotEnded) -> bool:
        """Note that a pilot is gone; return whether it was known."""
        start = self.up.pop(event.pilot, None)
        if start is None and self.requested.pop(event.pilot, None) is None:
            return False
        if start is not None:  # what was refused beside it says nothing of one in its place
            self._refusals[event.site] = 0
            self._retry_at.pop(event.site, None)
        if event.refused:
            # What is refused together, as four requests of a start are, is refused once.
            self._refusals[event.site] += event.at >= self._retry_at.get(event.site, event.at)
        elif event.pilot in self._made_progress:
            self._failures[event.site] = 0
        elif event.pilot not in self._released and self._came_to_nothing(event, start):
            self._failures[event.site] += 1
        for pilots in (self.closing, self.lost, self._released, self._idle_released):
            pilots.discard(event.pilot)
        for pilots in (self._had_job, self._made_progress, self.dated):
            pilots.discard(event.pilot)
        self._jobs.pop(event.pilot, None)
        self.idle_since.pop(event.pilot, None)
        return True

    def _came_to_nothing(self, event: PilotEnded, start: PilotStarted | None) -> bool:
        """Whether a pilot that brought no trial on should have."""
        if start is None or not event.usable:
            return not event.usable
        return event.pilot in self._had_job or event.at - start.at < _SHORT_S

    # ------------------------------------------------------------------------------- work

    def occupy(self, pilot: PilotId) -> None:
        """Note that a job starts on a pilot."""
        self._jobs[pilot] += 1
        self._had_job.add(pilot)
        self.idle_since.pop(pilot, None)

    def vacate(self, pilot: PilotId, now: float) -> None:
        """Note that a job has ended on a pilot."""
        if pilot not in self.up:
            return
        self._jobs[pilot] -= 1
        if not self._jobs[pilot]:
            self.idle_since[pilot] = now

    def note_progress(self, pilot: PilotId) -> None:
        """Note that a trial has got further on a pilot; its site is trusted again."""
        if pilot in self.up:
            self._made_progress.add(pilot)
            site = self.up[pilot].site
            self._failures[site] = 0
            if not self._refusals[site]:
                self._retry_at.pop(site, None)

    # ------------------------------------------------------------------------------- the end of a pilot

    def remaining_s(self, pilot: PilotId, now: float) -> float | None:
        """Return how long jobs on a pilot may still train [s], or None if for ever."""
        deadline = self.up[pilot].deadline if pilot in self.up else None
        return None if deadline is None else deadline - DEADLINE_MARGIN_S - now

    def is_too_late(self, pilot: PilotId, now: float, needed_s: float) -> bool:
        """Whether what needs so long [s] cannot end on a pilot any more, but could on a fresh one."""
        left_s = self.remaining_s(pilot, now)
        if left_s is None or left_s >= needed_s:
            return False
        whole_s = self.remaining_s(pilot, self.up[pilot].at)
        return whole_s is not None and whole_s >= needed_s

    def is_ending(self, pilot: PilotId, now: float) -> bool:
        """Whether a pilot that is up has little time left."""
        left_s = self.remaining_s(pilot, now)
        if left_s is None:
            return False
        whole_s = self.remaining_s(pilot, self.up[pilot].at)
        return left_s < min(_LAST_S, whole_s / 2 if whole_s is not None else _LAST_S)

    @property
    def controller_ends_at(self) -> float | None:
        """When the allocation that the controller is in is to be left [s], or None."""
        if not self.dated:
            return None
        own = (p.deadline for p in self.up.values() if p.is_own_allocation)
        return min((end - DEADLINE_MARGIN_S for end in own if end is not None), default=None)

    def must_controller_end(self, now: float) -> bool:
        """Whether the controller's own allocation ends, or is too short for more and all there is."""
        end = self.controller_ends_at
        if end is None:
            return False
        is_closed = not self.requested and all(
            p.is_own_allocation and i in self.closing - self.lost and i in self.idle_since
            for i, p in self.up.items()
        )
        return is_closed or now >= end

    def release_idle(self, now: float, *, draining: bool) -> Iterator[PilotId]:
        """Yield the pilots to release now: idle ones that close, or that were idle for too long.

        The controller's own allocation is never given back: another pilot there would be no longer one.

        Args:
            now: Present time [s].
            draining: Nothing waits for slots.
        """
        for pilot in [p for p in self.idle_since if p not in self._released and p not in self.lost]:
            if self.up[pilot].is_own_allocation:
                continue
            if pilot not in self.closing:
                due = self._due(pilot)
                if not draining or due is None or now < due:
                    continue
                self._idle_released.add(pilot)
                self.closing.add(pilot)
            self._released.add(pilot)
            yield pilot

    @property
    def wake_at(self) -> float | None:
        """When the next idle pilot will have been idle for too long [s], or None."""
        times = (self._due(p) for p in self.idle_since if p not in self.closing)
        return min((t for t in times if t is not None), default=None)

    def _due(self, pilot: PilotId) -> float | None:
        start = self.up[pilot]
        if start.release_idle_after_s is None or start.is_own_allocation:
            return None
        return self.idle_since[pilot] + start.release_idle_after_s

    # ------------------------------------------------------------------------------- replacements

    def is_idle_released(self, pilot: PilotId) -> bool:
        """Whether a pilot was given back for want of work."""
        return pilot in self._idle_released

    def is_spare(self, site: SiteName) -> bool:
        """Whether a site that has not failed has the pilots it should, without the one that has gone."""
        there = [p.site for p in self.up.values()] + list(self.requested.values())
        return there.count(site) >= self.least[site] and not self.must_back_off(site)

    def defer(self, site: SiteName) -> None:
        """Note that a pilot for which there was no work is not replaced, for now."""
        self.deferred[site] += 1

    def back_off(self, site: SiteName, now: float) -> None:
        """Note that a pilot of a site that fails is not replaced, for a while."""
        pause_s = 0.0
        if self._failures[site] >= _MAX_FAILURES:
            pause_s = _pause_s(_BACKOFF_S, self._failures[site] - _MAX_FAILURES, _MAX_BACKOFF_S)
        if self._refusals[site]:
            pause_s = max(pause_s, _pause_s(_REFUSED_S, self._refusals[site] - 1, _MAX_REFUSED_S))
        self._retry_at[site] = now + pause_s
        self.deferred[site] += 1

    @property
    def cooling_down(self) -> dict[SiteName, float]:
        """The sites that are not asked for a while, and when each may be asked again [s]."""
        return {site: at for site, at in self._retry_at.items() if self.deferred[site]}

    def retry_at(self, now: float) -> float | None:
        """Return when the next site that is cooling down may be asked again [s], or None."""
        if not self._retry_at:
            return None
        return min((at for at in self.cooling_down.values() if at > now), default=None)

    def request_deferred(self, waiting: Collection[SiteName | None], now: float) -> Iterator[RequestPilot]:
        """Yield requests for pilots that were not replaced: one at a time for each site.

        Args:
            waiting: Sites that somebody waits for; None is any.
            now: Present time [s].
        """
        awaited = set(self.requested.values())
        for site in sorted(s for s, n in self.deferred.items() if n and s not in awaited):
            if now >= self._retry_at.get(site, now) and not {None, site}.isdisjoint(waiting):
                self.deferred[site] -= 1
                yield self.request(site)


def _pause_s(first_s: float, doublings: int, most_s: float) -> float:
    return min(first_s * 2.0 ** min(doublings, 16), most_s)
