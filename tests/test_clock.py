"""Seconds are counted over interrupts, and counting them never hides what went wrong."""

import errno

import pytest

from jepa_wm.core import provenance as clock_room
from jepa_wm.core.provenance import clock


@pytest.fixture
def minutes(monkeypatch):
    """A time that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(clock_room.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_seconds_add_up_over_interrupts(tmp_path, minutes):
    file = tmp_path / "seconds.json"
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), clock(file):
            minutes(10)
            raise error
        minutes(1000)  # nobody works
    with clock(file) as spent:
        assert spent() == 20
        minutes(5)
        assert spent() == 25
    assert not file.exists(), "a stage that is begun anew counts anew"
    with clock(file) as spent:
        assert spent() == 0


def test_a_stage_that_never_began_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), clock(tmp_path / "stage" / "seconds.json"):
        raise ValueError
    assert not (tmp_path / "stage").exists()


def test_a_disk_too_full_for_the_seconds_does_not_hide_the_error(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(clock_room, "write_atomic", full)
    with pytest.raises(ValueError, match="the cause"), clock(tmp_path / "seconds.json"):
        raise ValueError("the cause")
