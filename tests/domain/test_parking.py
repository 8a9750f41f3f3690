"""Which images are kept parked, and what that does for starts: judged in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.parking import (
    AWAITED_S,
    OVERALL_S,
    SANDBOX_COST,
    UNUSED,
    ParkingPlan,
    ParkingPolicy,
    Use,
    is_forgotten,
    plan_parking,
)

HOST = "host"
ROOM = 200
NOW = 1_000_000.0


def policy(sandboxes: int, minimum: int = 0) -> ParkingPolicy:
    return ParkingPolicy(Bytes(sandboxes * SANDBOX_COST), minimum)


def used(times: int, ago_s: float = 0.0, apart_s: float = 30.0) -> Use:
    """Started so often, the last time `ago_s` ago."""
    use = UNUSED
    for left in reversed(range(times)):
        use = use.started(NOW - ago_s - left * apart_s)
    return use


def plan(
    policy: ParkingPolicy, uses: dict[str, Use], parked: dict[str, int] | None = None, **changes: object
) -> ParkingPlan:
    arguments = {"default": HOST, "now": NOW, "room": ROOM, **changes}
    return plan_parking(policy, uses, parked or {}, **arguments)  # type: ignore[arg-type]


def test_of_the_default_image_a_minimum_is_kept_whatever_the_memory() -> None:
    assert plan(ParkingPolicy(Bytes(0), 3), {}).make == (HOST,) * 3


def test_every_image_in_use_gets_one_before_any_gets_a_second() -> None:
    uses = {"often": used(8, 3600), "seldom": used(1, 3600)}
    assert plan(policy(2), uses).make == ("often", "seldom")


def test_an_image_started_by_many_at_once_gets_several() -> None:
    uses = {"course": used(20, 600, apart_s=0.2), "as-often": used(20, 600, apart_s=60), "seldom": used(1, 600)}
    made = Counter(plan(policy(60), uses).make)
    assert made["course"] >= 10
    assert made["as-often"] <= 3
    assert made["seldom"] >= 1


def test_an_image_that_is_being_started_again_and_again_gets_several() -> None:
    assert Counter(plan(policy(20), {"busy": used(60, apart_s=1)}).make)["busy"] >= 4


def test_when_memory_is_short_the_least_used_image_goes_without() -> None:
    uses = {f"i{n}": used(n) for n in range(1, 6)}
    assert Counter(plan(policy(3), uses).make).keys() == {"i5", "i4", "i3"}


def test_what_is_parked_stays_for_one_that_is_hardly_dearer() -> None:
    uses = {"here": used(4, 600), "new": used(5, 600), "dear": used(7, 600)}
    assert plan(policy(1), {"here": uses["here"], "new": uses["new"]}, {"here": 1}) == ParkingPlan((), ())
    assert plan(policy(1), {"here": uses["here"], "dear": uses["dear"]}, {"here": 1}) == ParkingPlan(
        ("dear",), ("here",)
    )


def test_an_image_just_brought_in_is_parked_at_once_though_others_were_started_more() -> None:
    uses = {f"i{n}": used(50, 60) for n in range(10)} | {"new": UNUSED.expected(NOW)}
    parked = {f"i{n}": 1 for n in range(10)}
    assert plan(policy(10), uses, parked).make == ("new",)
    assert "new" not in plan(policy(10), uses, parked, now=NOW + AWAITED_S + 1).make


def test_an_image_not_started_for_long_is_let_go_though_there_is_memory() -> None:
    uses = {"old": used(1)}
    assert plan(policy(10), uses, {"old": 1}).let_go == ()
    assert plan(policy(10), uses, {"old": 1}, now=NOW + 5 * OVERALL_S).let_go == ("old",)
    assert is_forgotten(uses["old"], NOW + 5 * OVERALL_S)


def test_an_image_nobody_knows_any_more_is_let_go() -> None:
    assert plan(policy(10), {}, {"gone": 2}).let_go == ("gone", "gone")


def test_of_an_image_that_cannot_be_made_now_what_is_parked_is_kept() -> None:
    uses = {"broken": used(40)}
    assert plan(policy(10), uses, {"broken": 1}, not_now={"broken"}) == ParkingPlan((), ())
    assert plan(policy(10), uses, {}, not_now={"broken"}).make == ()


def test_a_clock_that_went_backwards_changes_no_count() -> None:
    use = used(3)
    assert use.as_of(NOW - 500) == use


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(0, 50), st.floats(0, 1e6)), max_size=8),
    st.dictionaries(st.sampled_from("abcdefghij"), st.integers(0, 5), max_size=10),
    st.integers(0, 20),
    st.integers(0, 8),
    st.integers(0, 30),
)
def test_a_plan_keeps_to_its_bounds_and_once_done_leaves_nothing_to_do(
    counts: dict[str, tuple[int, float]], parked: dict[str, int], sandboxes: int, minimum: int, room: int
) -> None:
    uses = {digest: used(times, ago_s) for digest, (times, ago_s) in counts.items()}
    first = plan(policy(sandboxes, minimum), uses, parked, room=room)
    after = Counter(parked) + Counter(first.make) - Counter(first.let_go)
    assert after.total() <= min(room, max(sandboxes, minimum))
    assert after[HOST] >= min(minimum, room)
    assert not Counter(first.make) & Counter(first.let_go)
    assert plan(policy(sandboxes, minimum), uses, dict(after), room=room) == ParkingPlan((), ())


# --- a trace in virtual time ------------------------------------------------------------------------------------------

MAKING_S = 0.1
MAKERS = 2
REFILL_AFTER_S = 0.2


@dataclass
class Node:
    """Parks as the plan says: two at a time, 0.1 s each, the first 0.2 s after a start."""

    policy: ParkingPolicy
    uses: dict[str, Use] = field(default_factory=dict)
    parked: Counter[str] = field(default_factory=Counter)
    making: list[tuple[float, str]] = field(default_factory=list)
    look_at: float = 0.0
    hits: int = 0
    most_parked: int = 0

    def bring_in(self, digest: str, now: float) -> None:
        self.uses[digest] = self.uses.get(digest, UNUSED).expected(now)
        self.look_at = min(self.look_at, now)

    def start(self, digest: str, now: float) -> None:
        self.advance(now)
        self.uses[digest] = self.uses[digest].started(now)
        self.look_at = min(self.look_at, now + REFILL_AFTER_S)
        if self.parked[digest]:
            self.parked[digest] -= 1
            self.hits += 1

    def advance(self, until: float) -> None:
        while True:
            done = self.making[0][0] if self.making else float("inf")
            at = min(done, self.look_at)
            if at > until:
                return
            if done <= self.look_at:
                self.parked[heapq.heappop(self.making)[1]] += 1
                self.look_at = min(self.look_at, at)
            self.look(at)

    def look(self, now: float) -> None:
        self.look_at = float("inf")
        have = self.parked + Counter(digest for _, digest in self.making)
        plan = plan_parking(self.policy, self.uses, have, HOST, now, ROOM)
        self.parked = self.parked - Counter(plan.let_go)
        for digest in plan.make[: MAKERS - len(self.making)]:
            heapq.heappush(self.making, (now + MAKING_S, digest))
        self.most_parked = max(self.most_parked, self.parked.total() + len(self.making))


def zipf_trace(seed: int, starts: int = 500, images: int = 50, every_s: float = 2.0) -> list[tuple[float, str]]:
    """The n-th image is asked for 1/n as often as the first."""
    chance = random.Random(seed)
    names = [f"i{n:02d}" for n in range(images)]
    picked = chance.choices(names, [1 / (n + 1) for n in range(images)], k=starts)
    times = itertools.accumulate(chance.expovariate(1 / every_s) for _ in range(starts))
    return list(zip(times, picked, strict=True))


def bursty_trace(seed: int, starts: int = 500, images: int = 50) -> list[tuple[float, str]]:
    """A minute or so apart, a handful of people begin with the same image within ten seconds."""
    chance = random.Random(seed)
    trace: list[tuple[float, str]] = []
    now = 0.0
    while len(trace) < starts:
        now += chance.expovariate(1 / 60)
        image = f"i{min(int(chance.paretovariate(0.8)) - 1, images - 1):02d}"
        trace += [(now + chance.uniform(0, 10), image) for _ in range(chance.randint(2, 10))]
    return sorted(trace[:starts])


def hit_rate(trace: list[tuple[float, str]], policy: ParkingPolicy) -> tuple[float, Node]:
    """Each image is brought in half a second before its first start, as a pull ends before the sandbox is claimed."""
    node = Node(policy)
    first: dict[str, float] = {}
    for at, digest in trace:
        first.setdefault(digest, at)
    events = sorted([(at - 0.5, 0, digest) for digest, at in first.items()] + [(at, 1, digest) for at, digest in trace])
    for at, kind, digest in events:
        if kind == 0:
            node.advance(at)
            node.bring_in(digest, at)
        else:
            node.start(digest, at)
    return node.hits / len(trace), node


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("trace", [zipf_trace, bursty_trace], ids=["zipf", "bursty"])
def test_in_500_starts_over_50_images_95_of_100_find_a_parked_sandbox(trace: object, seed: int) -> None:
    bound = ParkingPolicy(Bytes(160 * MIB), minimum=2)
    rate, node = hit_rate(trace(seed), bound)  # type: ignore[operator]
    assert rate >= 0.95
    assert node.most_parked * SANDBOX_COST <= bound.memory


def test_with_half_the_memory_that_the_images_need_most_starts_still_hit() -> None:
    rate, node = hit_rate(zipf_trace(7), ParkingPolicy(Bytes(50 * MIB), minimum=2))
    assert rate >= 0.7
    assert node.most_parked <= 25


def test_without_following_use_the_same_memory_hits_far_less() -> None:
    """The rate is the policy's doing: the first images of the alphabet, one each, would not do."""
    trace = zipf_trace(7)
    fixed = {f"i{n:02d}" for n in range(25, 50)}
    assert sum(digest in fixed for _, digest in trace) / len(trace) < 0.5
