"""Which GPU slots are free, over all pilots of all sites.

A placement of at most one node's GPUs lies on one node; a larger one takes its GPUs evenly from
nodes that were wholly free. Inside a node slots are given out in aligned blocks, on the fullest
node that fits, so that doubling in place rarely meets a neighbour. The ledger starts nothing and
remembers no trial: it knows which slots are free, held or set aside, and which world sizes a site refuses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName

Slot: TypeAlias = tuple[SiteName, NodeName, int]
"""A GPU of a node of a site, in whichever pilot it is."""


def slots_of(placement: Placement) -> frozenset[Slot]:
    """Return the slots of a placement."""
    return frozenset([(placement.site, n.node, gpu) for n in placement.nodes for gpu in n.gpus])


@dataclass(slots=True)
class _Node:
    """One node; bit ``i`` of ``held``, ``aside`` and ``free`` stands for ``gpus[i]``.

    Attributes:
        place: Its place among the nodes of its pilot, by name.
    """

    name: NodeName
    gpus: tuple[int, ...]
    place: int
    held: int = 0
    aside: int = 0
    free: int = 0
    all: int = 0
    _slots: dict[int, NodeSlots] = field(default_factory=dict)
    _masks: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all = (1 << len(self.gpus)) - 1
        self.free = self.all & ~self.aside

    def mask(self, gpus: tuple[int, ...]) -> int:
        mask = self._masks.get(gpus)
        if mask is None:
            mask = self._masks[gpus] = sum(1 << self.gpus.index(gpu) for gpu in gpus)
        return mask

    def mask_of(self, site: SiteName, slots: Collection[Slot]) -> int:
        return sum(1 << i for i, gpu in enumerate(self.gpus) if (site, self.name, gpu) in slots)

    def slots(self, mask: int) -> NodeSlots:
        slots = self._slots.get(mask)
        if slots is None:
            gpus = tuple(gpu for i, gpu in enumerate(self.gpus) if mask >> i & 1)
            slots = self._slots[mask] = NodeSlots(self.name, gpus)
        return slots


@dataclass(slots=True)
class _Pilot:
    """The nodes of one pilot by name, bucketed by how many of their GPUs are free."""

    id: PilotId
    site: SiteName
    nodes: dict[NodeName, _Node]
    per_node: int = 0  # GPUs of its largest nodes
    most_nodes: int = 0  # over how many nodes a trial may lie: one, unless all have as many GPUs
    buckets: list[int] = field(default_factory=list)  # free count -> bit ``i`` stands for the ``i``th node
    by_place: tuple[_Node, ...] = ()
    _placements: dict[tuple[int, int], Placement] = field(default_factory=dict)  # on one node: place, mask

    def __post_init__(self) -> None:
        sizes = [len(n.gpus) for n in self.nodes.values()]
        self.per_node = max(sizes, default=0)
        # Slurm holds what a step asks of each of its nodes against the smallest of the job.
        self.most_nodes = len(sizes) if len(set(sizes)) <= 1 else 1
        self.buckets = [0] * (self.per_node + 1)
        self.by_place = tuple(sorted(self.nodes.values(), key=lambda node: node.place))
        for node in self.by_place:
            self.buckets[node.free.bit_count()] |= 1 << node.place

    def placement(self, chosen: list[tuple[_Node, int]]) -> Placement:
        """Return the placement on some slots of nodes."""
        if len(chosen) > 1:
            return Placement(self.site, self.id, tuple(node.slots(mask) for node, mask in chosen))
        ((node, mask),) = chosen
        found = self._placements.get((node.place, mask))
        if found is None:
            found = Placement(self.site, self.id, (node.slots(mask),))
            self._placements[node.place, mask] = found
        return found

    def mark(self, node: _Node, *, held: int | None = None, aside: int | None = None) -> int:
        """Change a node; return by how many its free slots have grown."""
        before = node.free.bit_count()
        node.held = node.held if held is None else held
        node.aside = node.aside if aside is None else aside
        node.free = node.all & ~(node.held | node.aside)
        after = node.free.bit_count()
        if after != before:
            self.buckets[before] ^= 1 << node.place
            self.buckets[after] ^= 1 << node.place
        return after - before


class Ledger:
    """Free and held slots. `find` looks, `take` and `release` change.

    Attributes:
        free: Free slots over all sites.
        narrowest: World size up to which jobs may use slots on probation.
    """

    def __init__(self) -> None:
        self.narrowest = 1
        self._pilots: dict[PilotId, _Pilot] = {}
        self._at: dict[SiteName, list[_Pilot]] = {}  # in the order in which they joined
        self.free = 0
        self._free: dict[SiteName, int] = {}
        self._aside: set[Slot] = set()
        self._probation: set[Slot] = set()
        self._refused: set[tuple[SiteName, int | None]] = set()

    # ------------------------------------------------------------------------------- pilots

    def add_pilot(self, pilot: PilotId, site: SiteName, nodes: Sequence[NodeSlots]) -> None:
        """Let a pilot's slots join, all free.

        Raises:
            InvalidSettingError: If the pilot is known, or names a node or a GPU twice.
        """
        names = [n.node for n in nodes]
        if pilot in self._pilots or len(set(names)) < len(names):
            raise InvalidSettingError(f"pilot {pilot}", names, "a new pilot with distinct nodes")
        if any(len(set(n.gpus)) < len(n.gpus) for n in nodes):
            raise InvalidSettingError(f"pilot {pilot}", nodes, "distinct GPUs on each node")
        sized = sorted((n for n in nodes if n.gpus), key=lambda n: n.node)
        entries = {n.node: _Node(n.node, n.gpus, place) for place, n in enumerate(sized)}
        for node in entries.values() if self._aside else ():
            node.aside = node.mask_of(site, self._aside)
            node.free = node.all & ~node.aside
        self._pilots[pilot] = joined = _Pilot(pilot, site, entries)
        self._at.setdefault(site, []).append(joined)
        self._free.setdefault(site, 0)
        self._count(site, sum(n.free.bit_count() for n in entries.values()))

    def remove_pilot(self, pilot: PilotId) -> None:
        """Let a pilot's slots leave, free or held; placements there need no release."""
        gone = self._pilots.pop(pilot, None)
        if gone is not None:
            self._at[gone.site].remove(gone)
            self._count(gone.site, -sum(n.free.bit_count() for n in gone.nodes.values()))

    @property
    def pilots(self) -> tuple[PilotId, ...]:
        """Pilots that are up."""
        return tuple(self._pilots)

    def may_free(self, placement: Placement) -> bool:
        """Whether all slots of a placement would be handed out again once they are released."""
        if placement.pilot not in self._pilots:
            return False
        return not any(node.aside & mask for node, mask in self._masks(placement)[1])

    # ------------------------------------------------------------------------------- counting

    def _count(self, site: SiteName, change: int) -> None:
        """Note that so many slots more are free."""
        self.free += change
        self._free[site] += change

    def free_at(self, site: SiteName) -> int:
        """Free slots of one site."""
        return self._free.get(site, 0)

    def sites_by_free(self) -> list[SiteName]:
        """Sites with a pilot, the one with most free slots first."""
        if len(self._free) == 1:
            return list(self._free)
        return sorted(self._free, key=lambda s: (-self._free[s], s))

    def can_ever_fit(
        self,
        world_size: int,
        site: SiteName | None = None,
        *,
        avoid: Collection[Slot] = (),
        whole: bool = False,
    ) -> bool:
        """Whether ``world_size`` slots would fit on a pilot that is up (of that site), if all were free.

        Args:
            world_size: Slots wanted.
            site: Only there.
            avoid: Slots that do not count.
            whole: Count also what is set aside, on probation or refused.
        """
        pilots = [p for p in self._pilots.values() if site in {None, p.site}]
        if whole or not (self.is_reduced or avoid):
            return any(_shape(p, world_size, everything=True) for p in pilots)
        hidden = {*avoid, *self._aside, *(self._probation if world_size > self.narrowest else ())}
        return any(
            _fits_without(p, world_size, hidden) for p in pilots if not self._refuses(p.site, world_size)
        )

    @property
    def largest(self) -> int:
        """Slots of a pilot that a trial may have at most: no placement can be wider."""
        return max((p.per_node * p.most_nodes for p in self._pilots.values()), default=0)

    # ------------------------------------------------------------------------------- what is not used

    @property
    def is_reduced(self) -> bool:
        """Whether anything is set aside, on probation or refused."""
        return bool(self._aside or self._probation or self._refused)

    @property
    def num_set_aside(self) -> int:
        """Slots of the pilots that are up that are set aside and not held."""
        nodes = (n for p in self._pilots.values() for n in p.nodes.values())
        return sum((n.aside & ~n.held).bit_count() for n in nodes)

    def slots_at(self, site: SiteName, node: NodeName | None = None) -> frozenset[Slot]:
        """Return the slots of the pilots that are up, of a site or of a node there."""
        pilots = (p for p in self._pilots.values() if p.site == site)
        nodes = (n for p in pilots for n in p.nodes.values() if node in {None, n.name})
        return frozenset((site, n.name, gpu) for n in nodes for gpu in n.gpus)

    def set_aside(self, slots: Iterable[Slot]) -> None:
        """Hand slots out no more; whoever holds them keeps them."""
        self._aside.update(slots)
        self._mark_aside()

    def restore(self, slots: Iterable[Slot], *, on_probation: bool = False) -> None:
        """Hand slots out again; on probation only to jobs of the narrowest world size."""
        slots = set(slots)
        self._aside -= slots
        self._probation -= slots
        if on_probation:
            self._probation |= slots
        self._mark_aside()

    def refuse(self, site: SiteName, world_size: int | None = None) -> None:
        """Hand out no slots of a site to jobs of a world size, or to any job."""
        self._refused.add((site, world_size))

    def allow(self, site: SiteName, world_size: int | None = None) -> None:
        """Take `refuse` back."""
        self._refused.discard((site, world_size))

    def _refuses(self, site: SiteName, world_size: int) -> bool:
        return not self._refused.isdisjoint({(site, world_size), (site, None)})

    def _mark_aside(self) -> None:
        for pilot in self._pilots.values():
            for node in pilot.nodes.values():
                aside = node.mask_of(pilot.site, self._aside)
                if aside != node.aside:
                    self._count(pilot.site, pilot.mark(node, aside=aside))

    @contextmanager
    def _without(self, slots: Collection[Slot]) -> Iterator[None]:
        """Let some slots count as held."""
        before: list[tuple[_Pilot, _Node, int]] = []
        for pilot in self._pilots.values():
            for node in pilot.nodes.values():
                if hidden := node.mask_of(pilot.site, slots) & node.free:
                    before.append((pilot, node, node.held))
                    pilot.mark(node, held=node.held | hidden)
        try:
            yield
        finally:
            for pilot, node, held in before:
                pilot.mark(node, held=held)

    # ------------------------------------------------------------------------------- placements

    def find(
        self,
        world_size: int,
        *,
        site: SiteName | None = None,
        own: Placement | None = None,
        avoid: Collection[Slot] = (),
    ) -> Placement | None:
        """Return free slots for a job of ``world_size``, or None to wait. Changes nothing.

        Args:
            world_size: Slots wanted.
            site: Only there; otherwise the site with most free slots that fits.
            own: A placement whose slots count as free, and are preferred.
            avoid: Slots that count as held.
        """
        hidden: Collection[Slot] = avoid
        if self._probation and world_size > self.narrowest:
            if own is not None and not self._probation.isdisjoint(slots_of(own)):
                return None
            hidden = {*avoid, *self._probation}
        if not hidden:
            return self._find(world_size, site, own)
        with self._without(hidden):
            return self._find(world_size, site, own)

    def _find(self, world_size: int, site: SiteName | None, own: Placement | None) -> Placement | None:
        for name in [site] if site is not None else self.sites_by_free():
            if self._refused and self._refuses(name, world_size):
                continue
            if self.free_at(name) + (own.world_size if own and own.site == name else 0) < world_size:
                continue
            found = self._find_at(name, world_size, own)
            if found is not None:
                return found
        return None

    def take(self, placement: Placement) -> None:
        """Hold the slots of a placement.

        Raises:
            InvalidSettingError: If one of them is held already or does not exist.
        """
        pilot, masks = self._masks(placement)
        for node, mask in masks:
            if mask & ~node.free:
                raise InvalidSettingError("placement", placement, "slots that are free")
        for node, mask in masks:
            self._count(pilot.site, pilot.mark(node, held=node.held | mask))

    def release(self, placement: Placement) -> None:
        """Give slots back; those of a pilot that has left are forgotten.

        Raises:
            InvalidSettingError: If one of them is free already.
        """
        if placement.pilot not in self._pilots:
            return
        pilot, masks = self._masks(placement)
        for node, mask in masks:
            if mask & ~node.held:
                raise InvalidSettingError("placement", placement, "slots that are held")
        for node, mask in masks:
            self._count(pilot.site, pilot.mark(node, held=node.held & ~mask))

    def _masks(self, placement: Placement) -> tuple[_Pilot, list[tuple[_Node, int]]]:
        pilot = self._pilots.get(placement.pilot)
        if pilot is None:
            raise InvalidSettingError("placement", placement, "slots of a pilot that is up")
        return pilot, [(node := pilot.nodes[n.node], node.mask(n.gpus)) for n in placement.nodes]

    def _find_at(self, site: SiteName, world_size: int, own: Placement | None) -> Placement | None:
        pilots = self._at.get(site, [])
        if len(pilots) > 1 and own is not None:
            pilots = sorted(pilots, key=lambda p: p.id != own.pilot)
        best: tuple[int, _Pilot, list[tuple[_Node, int]]] | None = None
        for pilot in pilots:
            mine = _own_masks(pilot, own)
            chosen = (
                _on_one_node(pilot, world_size, mine)
                if world_size <= pilot.per_node
                else _over_nodes(pilot, world_size, mine)
            )
            if chosen is None:
                continue
            if mine or len(pilots) == 1:
                return pilot.placement(chosen)
            waste = sum(n.free.bit_count() - m.bit_count() for n, m in chosen)
            if best is None or waste < best[0]:
                best = (waste, pilot, chosen)
            if waste == 0:
                break
        return None if best is None else best[1].placement(best[2])


def _own_masks(pilot: _Pilot, own: Placement | None) -> dict[NodeName, int]:
    if own is None or own.pilot != pilot.id:
        return {}
    return {part.node: pilot.nodes[part.node].mask(part.gpus) for part in own.nodes}


def _on_one_node(pilot: _Pilot, world_size: int, own: dict[NodeName, int]) -> list[tuple[_Node, int]] | None:
    for name, mine in own.items():
        node = pilot.nodes[name]
        if (node.free | mine).bit_count() >= world_size:
            return [(node, _block(node.free | mine, world_size, mine, len(node.gpus)))]
    for bucket in pilot.buckets[world_size:]:
        if bucket:
            node = pilot.by_place[(bucket & -bucket).bit_length() - 1]
            return [(node, _block(node.free, world_size, 0, len(node.gpus)))]
    return None


def _over_nodes(pilot: _Pilot, world_size: int, own: dict[NodeName, int]) -> list[tuple[_Node, int]] | None:
    shape = _shape(pilot, world_size)
    if shape is None:
        return None
    count, each = shape
    whole = [
        n for name, m in own.items() if ((n := pilot.nodes[name]).free | m) == n.all and len(n.gpus) >= each
    ]
    left = pilot.buckets[pilot.per_node]
    while left and len(whole) < count:
        node = pilot.by_place[(left & -left).bit_length() - 1]
        left &= left - 1
        if node.name not in own:
            whole.append(node)
    if len(whole) < count:
        return None
    return [(node, (1 << each) - 1) for node in whole[:count]]


def _shape(pilot: _Pilot, world_size: int, *, everything: bool = False) -> tuple[int, int] | None:
    """Return (nodes, GPUs on each) for a world size, fewest nodes first, or None if it never fits."""
    per_node = pilot.per_node
    if everything and 0 < world_size <= per_node:
        return 1, world_size
    for count in range(-(-world_size // per_node) if per_node else 1, pilot.most_nodes + 1):
        if world_size % count == 0:
            return count, world_size // count
    return None


def _fits_without(pilot: _Pilot, world_size: int, hidden: Collection[Slot]) -> bool:
    """Whether a world size fits on a pilot if all its slots but the hidden ones are free."""
    left = [(n, len(n.gpus) - n.mask_of(pilot.site, hidden).bit_count()) for n in pilot.nodes.values()]
    if world_size <= pilot.per_node:
        return any(count >= world_size for _, count in left)
    shape = _shape(pilot, world_size)
    return shape is not None and sum(count == pilot.per_node for _, count in left) >= shape[0]


@lru_cache(maxsize=4096)
def _block(free: int, world_size: int, own: int, size: int) -> int:
    """Choose ``world_size`` of the free bits: an aligned block holding ``own`` if there is one.

    Among aligned blocks the one whose buddy is most in use is taken, which keeps larger aligned
    blocks whole for trials that will double.
    """
    block = (1 << world_size) - 1
    best: tuple[int, int] | None = None
    for start in range(0, size - world_size + 1, world_size):
        mask = block << start
        if mask & ~free or own & ~mask:
            continue
        buddy = block << (start + world_size if start // world_size % 2 == 0 else start - world_size)
        key = ((buddy & free).bit_count(), mask)
        if best is None or key < best:
            best = key
    if best is not None:
        return best[1]
    mask = own
    for bit in range(size):
        if mask.bit_count() >= world_size:
            break
        if free >> bit & 1:
            mask |= 1 << bit
    return mask if mask.bit_count() == world_size else _lowest(mask, world_size)


def _lowest(mask: int, world_size: int) -> int:
    kept = 0
    while kept.bit_count() < world_size:
        low = mask & -mask
        kept |= low
        mask ^= low
    return kept
