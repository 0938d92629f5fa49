"""Which GPU slots are free, over all pilots of all sites.

A placement of at most one node's GPUs lies on one node; a larger one takes its GPUs evenly from
nodes that were wholly free. Inside a node slots are given out in aligned blocks, on the fullest
node that fits, so that doubling in place rarely meets a neighbour. The ledger starts nothing and
remembers no trial: it knows free and held slots only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedSet

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName


@dataclass(slots=True)
class _Node:
    """One node; bit ``i`` of ``free`` stands for ``gpus[i]``."""

    name: NodeName
    gpus: tuple[int, ...]
    free: int

    @property
    def all(self) -> int:
        return (1 << len(self.gpus)) - 1

    def mask(self, gpus: Iterable[int]) -> int:
        return sum(1 << self.gpus.index(gpu) for gpu in gpus)

    def slots(self, mask: int) -> NodeSlots:
        return NodeSlots(self.name, tuple(gpu for i, gpu in enumerate(self.gpus) if mask >> i & 1))


@dataclass(slots=True)
class _Pilot:
    """The nodes of one pilot, bucketed by how many of their GPUs are free."""

    id: PilotId
    site: SiteName
    nodes: dict[NodeName, _Node]
    per_node: int = 0  # GPUs of its largest nodes
    full_nodes: int = 0  # how many nodes have so many
    buckets: list[SortedSet] = field(default_factory=list)  # free count -> node names

    def __post_init__(self) -> None:
        sizes = [len(n.gpus) for n in self.nodes.values()]
        self.per_node = max(sizes, default=0)
        self.full_nodes = sizes.count(self.per_node)
        self.buckets = [SortedSet() for _ in range(self.per_node + 1)]
        for node in self.nodes.values():
            self.buckets[node.free.bit_count()].add(node.name)

    def set_free(self, node: _Node, mask: int) -> None:
        self.buckets[node.free.bit_count()].remove(node.name)
        node.free = mask
        self.buckets[mask.bit_count()].add(node.name)


class Ledger:
    """Free and held slots. `find` looks, `take` and `release` change."""

    def __init__(self) -> None:
        self._pilots: dict[PilotId, _Pilot] = {}
        self._free: dict[SiteName, int] = {}

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
        entries = {n.node: _Node(n.node, n.gpus, (1 << len(n.gpus)) - 1) for n in nodes if n.gpus}
        self._pilots[pilot] = _Pilot(pilot, site, entries)
        self._free[site] = self._free.get(site, 0) + sum(len(n.gpus) for n in nodes)

    def remove_pilot(self, pilot: PilotId) -> None:
        """Let a pilot's slots leave, free or held; placements there need no release."""
        gone = self._pilots.pop(pilot, None)
        if gone is not None:
            self._free[gone.site] -= sum(n.free.bit_count() for n in gone.nodes.values())

    @property
    def pilots(self) -> tuple[PilotId, ...]:
        """Pilots that are up."""
        return tuple(self._pilots)

    # ------------------------------------------------------------------------------- counting

    @property
    def free(self) -> int:
        """Free slots over all sites."""
        return sum(self._free.values())

    def free_at(self, site: SiteName) -> int:
        """Free slots of one site."""
        return self._free.get(site, 0)

    def sites_by_free(self) -> list[SiteName]:
        """Sites with a pilot, the one with most free slots first."""
        if len(self._free) == 1:
            return list(self._free)
        return sorted(self._free, key=lambda s: (-self._free[s], s))

    def can_ever_fit(self, world_size: int, site: SiteName | None = None) -> bool:
        """Whether ``world_size`` slots would fit on a pilot that is up (of that site), if all were free."""
        pilots = [p for p in self._pilots.values() if site in {None, p.site}]
        return any(_shape(p, world_size, everything=True) for p in pilots)

    @property
    def largest(self) -> int:
        """Slots of the largest pilot: no placement can be wider."""
        return max((sum(len(n.gpus) for n in p.nodes.values()) for p in self._pilots.values()), default=0)

    # ------------------------------------------------------------------------------- placements

    def find(
        self, world_size: int, *, site: SiteName | None = None, own: Placement | None = None
    ) -> Placement | None:
        """Return free slots for a job of ``world_size``, or None to wait. Changes nothing.

        Args:
            world_size: Slots wanted.
            site: Only there; otherwise the site with most free slots that fits.
            own: A placement whose slots count as free, and are preferred.
        """
        for name in [site] if site is not None else self.sites_by_free():
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
        if any(mask & ~node.free for node, mask in masks):
            raise InvalidSettingError("placement", placement, "slots that are free")
        for node, mask in masks:
            pilot.set_free(node, node.free & ~mask)
            self._free[pilot.site] -= mask.bit_count()

    def release(self, placement: Placement) -> None:
        """Give slots back; those of a pilot that has left are forgotten.

        Raises:
            InvalidSettingError: If one of them is free already.
        """
        if placement.pilot not in self._pilots:
            return
        pilot, masks = self._masks(placement)
        if any(mask & node.free for node, mask in masks):
            raise InvalidSettingError("placement", placement, "slots that are held")
        for node, mask in masks:
            pilot.set_free(node, node.free | mask)
            self._free[pilot.site] += mask.bit_count()

    def _masks(self, placement: Placement) -> tuple[_Pilot, list[tuple[_Node, int]]]:
        pilot = self._pilots.get(placement.pilot)
        if pilot is None:
            raise InvalidSettingError("placement", placement, "slots of a pilot that is up")
        return pilot, [((node := pilot.nodes[n.node]), node.mask(n.gpus)) for n in placement.nodes]

    def _find_at(self, site: SiteName, world_size: int, own: Placement | None) -> Placement | None:
        pilots = [p for p in self._pilots.values() if p.site == site]
        if own is not None and len(pilots) > 1:
            pilots.sort(key=lambda p: p.id != own.pilot)
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
            alone = mine or len(pilots) == 1
            waste = 0 if alone else sum(n.free.bit_count() - m.bit_count() for n, m in chosen)
            if best is None or waste < best[0]:
                best = (waste, pilot, chosen)
            if waste == 0:
                break
        if best is None:
            return None
        _, pilot, chosen = best
        return Placement(site, pilot.id, tuple(node.slots(mask) for node, mask in chosen))


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
            node = pilot.nodes[bucket[0]]
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
    for name in pilot.buckets[pilot.per_node]:
        if len(whole) >= count:
            break
        if name not in own:
            whole.append(pilot.nodes[name])
    if len(whole) < count:
        return None
    return [(node, (1 << each) - 1) for node in whole[:count]]


def _shape(pilot: _Pilot, world_size: int, *, everything: bool = False) -> tuple[int, int] | None:
    """Return (nodes, GPUs on each) for a world size, fewest nodes first, or None if it never fits."""
    per_node = pilot.per_node
    if everything and 0 < world_size <= per_node:
        return 1, world_size
    for count in range(-(-world_size // per_node) if per_node else 1, pilot.full_nodes + 1):
        if world_size % count == 0:
            return count, world_size // count
    return None


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
