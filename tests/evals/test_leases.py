"""Leases: one holder at a time, given back, and taken over from a holder that died, on this machine or on another."""

import json
import os
import time
from contextlib import ExitStack

import pytest
from holders import elsewhere, forked, killed

from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals import leases as module
from ropescale.evals.leases import Leases


@pytest.fixture
def two(tmp_path):
    """Two holders that only the disk tells of one another."""
    with ExitStack() as stack:
        yield [stack.enter_context(Leases(tmp_path / "at", note="same")) for _ in range(2)]


def test_a_lease_has_one_holder_until_it_is_given_back(two):
    one, other = two
    assert one.take("a")
    assert not other.take("a")
    assert other.who("a").process == os.getpid()
    assert other.take("b")
    one.release("a")
    assert other.who("a") is None
    assert other.take("a")
    assert [len(each.others()) for each in two] == [1, 1]


def test_leases_are_given_back_at_the_end_and_nothing_is_left(tmp_path):
    def stopped():
        with Leases(tmp_path, note="") as held:
            assert held.take("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [*tmp_path.iterdir()] == []


def test_a_process_that_was_killed_is_known_at_once_and_has_one_successor(tmp_path, two):
    number = forked(tmp_path / "at", "a")
    one, other = two
    assert not one.take("a")
    assert one.who("a").process == number
    killed(number)
    began = time.monotonic()
    assert one.who("a") is None
    assert [one.take("a"), other.take("a")] == [True, False]
    assert time.monotonic() - began < 5  # nobody waits for silence
    one.release("a")
    assert other.take("a")
    os.waitpid(number, 0)


def test_a_number_that_a_later_process_has_is_no_sign_of_life(tmp_path, two):
    """The number is that of this test, which began at another time than the holder."""
    one, _ = two
    number = forked(tmp_path / "at", "a")
    killed(number)
    os.waitpid(number, 0)
    [member] = [
        path for path in (tmp_path / "at").glob("*.member") if json.loads(path.read_text())["process"] == number
    ]
    facts = json.loads(member.read_text())
    member.write_text(json.dumps({**facts, "process": os.getpid(), "began": facts["began"] - 100}))
    assert one.take("a")


def test_a_holder_on_another_machine_is_dead_when_it_has_been_silent_by_the_clock_of_the_disk(tmp_path, two):
    one, other = two
    assert other.take("a")
    [member] = [path for path in (tmp_path / "at").glob("*.member") if path.stem == other._own.id]
    elsewhere(member, process=2**22 + 1, host="node7")  # no process here has that number
    assert not one.take("a")
    assert one.who("a").label == f"process {2**22 + 1} on node7"
    os.utime(member, (0, time.time() - module.STALE + 30))
    assert not one.take("a")
    os.utime(member, (0, time.time() - module.STALE - 1))
    assert one.take("a")
    other.release("a")  # it was alive after all: what the other one has now, it does not take from it
    assert not other.take("a")


def test_a_holder_gives_a_sign_of_life_while_it_works(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    with Leases(tmp_path, note=""):
        [member] = tmp_path.glob("*.member")
        os.utime(member, (0, 0))
        until = time.monotonic() + 20
        while member.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert member.stat().st_mtime > 0
        member.unlink()  # swept, as if it had been dead
        while not member.exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert json.loads(member.read_text())["process"] == os.getpid()


def test_a_lease_whose_maker_died_before_it_wrote_its_name_is_free_after_a_while(tmp_path, two):
    one, _ = two
    (tmp_path / "at" / "a.lease").write_text("")
    assert not one.take("a")
    os.utime(tmp_path / "at" / "a.lease", (0, time.time() - module.STALE - 1))
    assert one.take("a")


def test_what_the_dead_left_is_swept_by_the_last_one_alone(tmp_path):
    number = forked(tmp_path, "a", "b")
    killed(number)
    os.waitpid(number, 0)
    with Leases(tmp_path, note="") as one:
        with Leases(tmp_path, note="") as other:
            assert [one.take("a"), other.take("mine")] == [True, True]
            one.sweep()
            assert one.who("a") is not None
            assert not one.take("mine")
        one.sweep()
        assert not [*tmp_path.glob("b.*")]
        assert one.who("a") is not None  # its own stays, and is found
        one.release("a")
        one.sweep()
    assert [*tmp_path.iterdir()] == []


def test_what_is_no_lease_is_refused(tmp_path, two):
    one, _ = two
    (tmp_path / "at" / "a.lease").symlink_to(tmp_path / "mine")
    with pytest.raises(InvalidArgumentError, match=r"ordinary file to write again, got '.*a\.lease', which is a link"):
        one.take("a")
    (tmp_path / "link").symlink_to(tmp_path / "at")
    with pytest.raises(InvalidArgumentError, match="must hold its folders itself"), Leases(tmp_path / "link", note=""):
        raise AssertionError
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="must be writable"), Leases(tmp_path / "file", note=""):
        raise AssertionError
