"""The ledger against plain sets of slots, over more than 1e5 random operations."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName

A, B = SiteName("a"), SiteName("b")
OPERATIONS = 600  # times 170 examples: 102,000


def nodes(*sizes: int) -> tuple[NodeSlots, ...]:
    return tuple(NodeSlots(NodeName(f"n{i}"), tuple(range(size))) for i, size in enumerate(sizes))


def ledger(*sizes: int, site: SiteName = A) -> Ledger:
    made = Ledger()
    made.add_pilot(PilotId("p"), site, nodes(*sizes))
    return made


def slots(placement: Placement) -> set[tuple[str, str]]:
    return {(placement.pilot, slot) for slot in placement.slots}


def test_who_holds_slots_grows_on_its_own_pilot_though_another_would_be_filled_by_it() -> None:
    made = ledger(4)
    (own,) = (made.find(1),)
    assert own is not None
    made.take(own)
    made.add_pilot(PilotId("q"), A, nodes(2))
    grown = made.find(2, site=A, own=own)
    assert grown is not None
    assert grown.pilot == "p"


class Books:
    """What should be true of a ledger, in sets of slots."""

    def __init__(self, seed: int) -> None:
        self.rng, self.ledger, self.count = random.Random(seed), Ledger(), 0
        self.up: dict[PilotId, tuple[SiteName, tuple[NodeSlots, ...]]] = {}
        self.held: list[Placement] = []
        self.free: set[tuple[str, str]] = set()

    def join(self) -> None:
        pilot, site = PilotId(f"p{self.count}"), self.rng.choice([A, B])
        self.count += 1
        size = self.rng.choice([1, 2, 3, 4, 6, 8])
        sizes = [
            size if self.rng.random() < 0.9 else self.rng.randint(0, 8) for _ in range(self.rng.randint(1, 6))
        ]
        self.up[pilot] = (site, nodes(*sizes))
        self.ledger.add_pilot(pilot, site, nodes(*sizes))
        self.free |= {(pilot, f"{n.node}:{g}") for n in nodes(*sizes) for g in n.gpus}

    def leave(self) -> None:
        pilot = self.rng.choice(list(self.up))
        del self.up[pilot]
        self.ledger.remove_pilot(pilot)
        gone = [held for held in self.held if held.pilot == pilot]
        self.held = [held for held in self.held if held.pilot != pilot]
        self.free = {slot for slot in self.free if slot[0] != pilot}
        for placement in gone:
            self.ledger.release(placement)  # a job that ends after its pilot: forgotten

    def start(self) -> None:
        width, site = self.rng.choice([1, 1, 1, 2, 2, 3, 4, 5, 6, 8, 12, 16]), self.rng.choice([None, A, B])
        found = self._find(width, site, None)
        if found is not None:
            self.ledger.take(found)
            self.free -= slots(found)
            self.held.append(found)

    def end(self) -> None:
        ended = self.held.pop(self.rng.randrange(len(self.held)))
        self.ledger.release(ended)
        self.free |= slots(ended)

    def resize(self) -> None:
        own = self.held.pop(self.rng.randrange(len(self.held)))
        width = self.rng.choice([own.world_size * 2, own.world_size * 2, max(1, own.world_size // 2)])
        found = self._find(width, own.site, own)
        if found is None:
            self.held.append(own)
            return
        added, dropped = found.minus(own), own.minus(found)
        self.ledger.take(added)
        self.ledger.release(dropped)
        self.free = (self.free | slots(own)) - slots(found)
        self.held.append(found)

    def _find(self, width: int, site: SiteName | None, own: Placement | None) -> Placement | None:
        before = self.ledger.free
        found = self.ledger.find(width, site=site, own=own)
        assert found == self.ledger.find(width, site=site, own=own), "the same state, the same answer"
        assert self.ledger.free == before, "to look changes nothing"
        if found is None:
            return None
        mine = slots(own) if own is not None else set()
        assert slots(found) <= self.free | mine
        assert found.world_size == width == len(slots(found))
        assert self.up[found.pilot][0] == found.site
        assert site in {None, found.site}
        assert self.ledger.can_ever_fit(width, found.site)
        per_node = max(len(n.gpus) for n in self.up[found.pilot][1])
        if width <= per_node:
            assert len(found.nodes) == 1
        else:
            shares = {len(n.gpus) for n in found.nodes}
            assert len(shares) == 1, "whole nodes are used evenly"
            used = {n.node for n in found.nodes}
            others = {s for held in self.held for s in slots(held) if held.pilot == found.pilot}
            assert not [slot for _, slot in others if slot.split(":")[0] in used], "nobody else is on them"
        return found

    def check(self) -> None:
        assert self.ledger.free == len(self.free)
        if self.rng.random() > 0.1:
            return  # the rest in one of ten states: it takes longer than what it checks
        taken = Counter(s for held in self.held for s in slots(held))
        assert not taken or max(taken.values()) == 1, "two jobs hold one slot"
        everything = {(p, f"{n.node}:{g}") for p, (_, ns) in self.up.items() for n in ns for g in n.gpus}
        assert self.free == everything - set(taken)
        assert self.ledger.free + taken.total() == len(everything)
        for site in (A, B):
            assert self.ledger.free_at(site) == sum(self.up[PilotId(p)][0] == site for p, _ in self.free)


@settings(max_examples=17 * settings.default.max_examples // 10, deadline=None)
@given(st.integers(0, 2**32))
def test_slots_are_conserved_and_never_shared(seed: int) -> None:
    books = Books(seed)
    books.join()
    for _ in range(OPERATIONS):
        draw = books.rng.random()
        if not books.up or draw < 0.03:
            books.join()
        elif draw < 0.05:
            books.leave()
        elif draw < 0.45 or not books.held:
            books.start()
        elif draw < 0.75:
            books.end()
        else:
            books.resize()
        books.check()


@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(1, 40))
def test_what_can_ever_fit_is_found_when_all_is_free(sizes: list[int], width: int) -> None:
    made = ledger(*sizes)
    assert made.can_ever_fit(width) == (made.find(width) is not None)
    assert not made.can_ever_fit(width, B)
    if width > made.largest:
        assert not made.can_ever_fit(width)


def test_trials_keep_to_one_node_where_nodes_have_different_gpus() -> None:
    made = ledger(4, 4, 2)
    assert [w for w in range(1, 11) if made.can_ever_fit(w)] == [1, 2, 3, 4]
    assert made.largest == 4


def test_a_request_that_can_never_fit_is_known_as_such() -> None:
    made = ledger(4, 4, 4)
    assert [w for w in range(1, 14) if made.can_ever_fit(w)] == [1, 2, 3, 4, 6, 8, 9, 12]
    assert made.largest == 12
    assert not Ledger().can_ever_fit(1)


@pytest.mark.parametrize("size", [4, 8])
def test_doubling_stays_in_place_as_long_as_buddies_are_free(size: int) -> None:
    """Trials come one by one; half of them end; then each of the others can double where it is."""
    made = ledger(size)
    held = []
    for _ in range(size // 2):
        found = made.find(1)
        assert found is not None
        made.take(found)
        held.append(found)
    for one in held[1::2]:
        made.release(one)
    for one in held[::2]:
        wider = made.find(2, own=one)
        assert wider is not None
        assert slots(one) < slots(wider), "its own slot is kept"
        made.take(wider.minus(one))


def test_doubling_mostly_stays_in_place() -> None:
    kept, moved = map(sum, zip(*map(doublings, range(40)), strict=True))
    assert kept > 5 * moved


def doublings(seed: int) -> tuple[int, int]:
    """Doublings that kept their slots, and those that moved, on 16 nodes of 8 in random use."""
    rng, made, held, kept, moved = random.Random(seed), ledger(*[8] * 16), [], 0, 0
    for _ in range(300):
        if held and rng.random() < 0.5:
            made.release(held.pop(rng.randrange(len(held))))
        elif held and rng.random() < 0.4:
            own = held.pop(rng.randrange(len(held)))
            wider = made.find(own.world_size * 2, own=own) if own.world_size < 8 else None
            if wider is not None:
                in_place = slots(own) < slots(wider)
                kept, moved = kept + in_place, moved + (not in_place)
                made.take(wider.minus(own))
                made.release(own.minus(wider))
            held.append(wider or own)
        elif (found := made.find(rng.choice([1, 1, 2]))) is not None:
            made.take(found)
            held.append(found)
    return kept, moved


def test_the_fullest_node_that_fits_is_used_first() -> None:
    made = ledger(4, 4, 4)
    first, second, wide = made.find(1), made.find(2), made.find(4)
    made.take(first)
    assert made.find(2).nodes == (NodeSlots(NodeName("n0"), (2, 3)),), "beside, in an aligned block"
    assert {first.nodes[0].node, second.nodes[0].node, wide.nodes[0].node} == {"n0"}
    assert made.find(4).nodes[0].node == "n1"
    assert [n.node for n in made.find(8).nodes] == ["n1", "n2"]
    assert made.find(12) is None


def test_a_narrower_placement_keeps_slots_of_its_own() -> None:
    made = ledger(4, 4)
    wide = made.find(8)
    made.take(wide)
    for width in (4, 2, 1):
        assert slots(made.find(width, own=wide)) < slots(wide)


def test_a_placement_over_nodes_keeps_the_whole_node_that_it_has() -> None:
    made = ledger(4, 4, 4)
    first, own = made.find(4), None
    made.take(first)
    made.take(own := made.find(4))
    made.release(first)
    assert own.nodes[0] in made.find(8, own=own).nodes


def test_own_slots_count_as_free_only_for_their_owner() -> None:
    made = ledger(4)
    own = made.find(3)
    made.take(own)
    assert made.find(2) is None
    assert made.find(4, own=own).world_size == 4
    assert made.free == 1


def test_a_placement_prefers_the_pilot_it_is_on_and_the_site_with_most_free() -> None:
    made = Ledger()
    made.add_pilot(PilotId("p"), A, nodes(4))
    made.add_pilot(PilotId("q"), A, nodes(4))
    made.add_pilot(PilotId("r"), B, nodes(4))
    assert made.find(1).site == A
    assert made.find(1, site=B).pilot == "r"
    own = made.find(1, site=A)
    made.take(own)
    assert made.find(4, own=own).pilot == own.pilot
    assert made.sites_by_free() == [A, B]
    assert made.find(8) is None, "one placement never spans two pilots"


def test_slots_cannot_be_taken_twice_nor_given_back_twice() -> None:
    made = ledger(2, 2)
    found = made.find(4)
    one = Placement(found.site, found.pilot, found.nodes[1:])
    made.take(one)
    with pytest.raises(InvalidSettingError, match="slots that are free"):
        made.take(found)
    assert made.free == 2, "nothing is taken of a placement that is refused"
    made.release(one)
    with pytest.raises(InvalidSettingError, match="slots that are held"):
        made.release(one)
    with pytest.raises(InvalidSettingError, match="a pilot that is up"):
        made.take(Placement(A, PilotId("gone"), found.nodes))


def test_a_pilot_names_each_node_and_gpu_once() -> None:
    made = ledger(2)
    for pilot, shape in (
        ("p", nodes(2)),
        ("q", (*nodes(2), *nodes(2))),
        ("q", (NodeSlots(NodeName("n"), (0, 0)),)),
    ):
        with pytest.raises(InvalidSettingError):
            made.add_pilot(PilotId(pilot), A, shape)
    assert made.free == 2


def test_gpus_keep_the_numbers_their_node_gave_them() -> None:
    made = Ledger()
    made.add_pilot(PilotId("p"), A, (NodeSlots(NodeName("n"), (3, 5)),))
    assert made.find(2).slots == ("n:3", "n:5")
