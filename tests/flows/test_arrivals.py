"""Work comes back in the order in which it ends, whatever became of it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from prefect.futures import PrefectConcurrentFuture

from stratascope.flows import arrivals
from stratascope.flows.arrivals import Arrivals


def handed_out() -> tuple[Future, PrefectConcurrentFuture]:
    from uuid import uuid4

    inner: Future = Future()
    return inner, PrefectConcurrentFuture(uuid4(), inner)


def test_a_piece_arrives_when_all_its_futures_have_ended_and_a_slow_one_blocks_nobody():
    under_way: Arrivals[str] = Arrivals()
    futures = {}
    for name in ("slow", "quick", "lost"):
        pairs = [handed_out(), handed_out()]
        futures[name] = [inner for inner, _ in pairs]
        under_way.expect(name, [outer for _, outer in pairs])
    futures["slow"][0].set_result(None)
    futures["quick"][1].set_result(None)
    futures["lost"][0].set_exception(RuntimeError("its worker died"))
    futures["lost"][1].set_exception(RuntimeError("its worker died"))
    assert under_way.next() == "lost"
    futures["quick"][0].set_result(None)
    assert under_way.next() == "quick"
    assert len(under_way) == 1
    futures["slow"][1].set_result(None)
    assert under_way.next() == "slow"
    with pytest.raises(LookupError):
        under_way.next()


def test_what_had_ended_before_it_was_expected_arrives():
    inner, outer = handed_out()
    inner.set_result(1)
    under_way: Arrivals[int] = Arrivals()
    under_way.expect(7, [outer])
    assert under_way.next() == 7


def test_an_end_that_nobody_tells_of_is_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrivals, "_LOOK_AGAIN_SECONDS", 0.05)
    inner, outer = handed_out()
    monkeypatch.setattr(inner, "add_done_callback", lambda callback: None)
    under_way: Arrivals[str] = Arrivals()
    under_way.expect("silent", [outer])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(under_way.next)
        assert not waiting.done()
        inner.set_result(None)
        assert waiting.result(timeout=30) == "silent"


def test_many_threads_end_what_one_thread_waits_for():
    under_way: Arrivals[int] = Arrivals()
    pairs = [handed_out() for _ in range(300)]
    for number in range(100):
        under_way.expect(number, [outer for _, outer in pairs[3 * number : 3 * number + 3]])
    with ThreadPoolExecutor(8) as pool:
        for inner, _ in reversed(pairs):
            pool.submit(inner.set_result, None)
        assert sorted(under_way.next() for _ in range(100)) == list(range(100))
    assert len(under_way) == 0
