"""The package's rules of a step written for whole batches, for plans that are tried by the
thousand: a test holds them against the package, transition by transition.

B worlds, X state numbers, g cells a side."""

from __future__ import annotations

import numpy as np

from jepa_wm.worlds.minigrid.layouts import (
    AGENT,
    CARRIED,
    CLOSED,
    DIRECTION,
    DROP,
    FORWARD,
    KEY,
    KINDS,
    LATCH,
    LEFT,
    LOCKED,
    OPEN,
    PICKUP,
    QUARTER,
    RIGHT,
    STEPS,
    TOGGLE,
    Env,
)


def stepped(env: Env, solid: np.ndarray, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """[B, X] float32 the states that follow on [B, X] by the package's numbers of actions [B],
    where walls are at `solid` [B, g, g]."""
    after = state.copy()
    quarters = (state[:, DIRECTION] / QUARTER).astype(np.int64)
    turn = (action == RIGHT).astype(np.int64) - (action == LEFT)
    after[:, DIRECTION] = QUARTER * ((quarters + turn) % 4)
    # What is ahead: of a door, even an open one, no key can be put into the cell.
    ahead = state[:, AGENT] + STEPS[quarters].astype(np.float32)
    x, y = ahead.astype(np.int64).T
    blocked = solid[np.arange(len(state)), y, x]
    if env == "door_key":
        held, latch = state[:, CARRIED] == 1, state[:, LATCH]
        at_door = (ahead == state[:, KINDS[env].layout]).all(1)
        at_key = (ahead == state[:, KEY]).all(1) & ~held
        dropped = (action == DROP) & held & ~blocked & ~at_door
        picked = (action == PICKUP) & at_key
        turned = (action == TOGGLE) & at_door
        unlocked = turned & (latch == LOCKED) & held
        after[turned & (latch == OPEN), LATCH] = CLOSED
        after[unlocked | (turned & (latch == CLOSED)), LATCH] = OPEN
        blocked = blocked | at_key | (at_door & (latch != OPEN))

    # The agent walks, and a carried key with it.
    walked = (action == FORWARD) & ~blocked
    after[walked, AGENT] = ahead[walked]
    if env == "door_key":
        after[picked, CARRIED], after[dropped, CARRIED] = 1, 0
        after[:, KEY] = np.where((after[:, CARRIED] == 1)[:, None], after[:, AGENT], after[:, KEY])
        after[dropped, KEY] = ahead[dropped]
    return after
