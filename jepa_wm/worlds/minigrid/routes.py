"""Shortest ways in MiniGrid's rooms, by the key and through the door where they lead there: how
many actions each pose is from a goal cell, and which action is next.

R rows, a state and a goal each, B worlds, X state numbers, g cells a side. A pose is a direction
and a cell: arrays of poses are [R, 4, g, g], y before x."""

from __future__ import annotations

import numpy as np

from jepa_wm.worlds.minigrid.layouts import (
    AGENT,
    CARRIED,
    CLOSED,
    DIRECTION,
    DONE,
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
    walls,
)

NEVER = np.float32(np.inf)


def routes(env: Env, grid: int, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[R, 7, 4, g, g] float32: how many actions it takes from each pose to the goal cell [R, 2],
    if the first of them is the package's action of that number, all else being as in states
    [R, X]; infinite for what cannot help.

    To drop the key never helps, nor to close the door."""
    layout = state[:, KINDS[env].layout]
    floor = ~walls(env, grid, layout)
    start = np.where(_cells(goal, grid)[:, None], np.float32(0), NEVER)
    start = np.broadcast_to(start, (len(state), 4, grid, grid))
    if env == "four_rooms":
        return _padded(_first_actions(floor, _flow(floor, start)))

    # What is done with key and door comes before what it leads to, so the last part is solved
    # first: the door open and the key at hand.
    door, key = _cells(layout, grid), _cells(state[:, KEY], grid)
    at_door, at_key = _facing(layout, grid), _facing(state[:, KEY], grid)
    walled = floor & ~door
    free = _flow(floor, start)
    unlocked = np.where(at_door, 1 + free, NEVER)
    holding = _flow(walled, np.minimum(start, unlocked))
    fetched = np.where(at_key, 1 + free, NEVER)
    opened = _flow(floor & ~key, np.minimum(start, fetched))
    picked, swung = np.where(at_key, 1 + holding, NEVER), np.where(at_door, 1 + opened, NEVER)
    closed = _flow(walled & ~key, np.minimum(start, np.minimum(picked, swung)))
    locked = _flow(walled & ~key, np.minimum(start, picked))

    # Each row is in one of five: its cells, the way from each pose, what key and door add.
    held, latch = state[:, CARRIED] == 1, state[:, LATCH]
    nothing = np.full_like(free, NEVER)
    actions = np.empty((len(state), 7, 4, grid, grid), np.float32)
    for row, cells, togo, pick, toggle in (
        (held & (latch == OPEN), floor, free, nothing, nothing),
        (held & (latch != OPEN), walled, holding, nothing, unlocked),
        (~held & (latch == OPEN), floor & ~key, opened, fetched, nothing),
        (~held & (latch == CLOSED), walled & ~key, closed, picked, swung),
        (~held & (latch == LOCKED), walled & ~key, locked, picked, nothing),
    ):
        actions[row] = _padded(_first_actions(cells[row], togo[row]))
        actions[row, PICKUP], actions[row, TOGGLE] = pick[row], toggle[row]
    return actions


def at_pose(values: np.ndarray, state: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """[B, ...] what arrays [R, ..., 4, g, g] of poses hold for the agents of states [B, X], in the
    arrays of numbers `rows` [B], or one each."""
    direction = (state[:, DIRECTION] / QUARTER).astype(np.int64)
    x, y = state[:, AGENT].astype(np.int64).T
    which = np.arange(len(state)) if rows is None else rows
    return np.asarray(values[which, ..., direction, y, x])


def next_action(costs: np.ndarray, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[R] the package's number of the action of least cost [R, 7]; nothing is done at the goal,
    and where no way leads there."""
    arrived = (state[:, AGENT] == goal).all(1) | ~np.isfinite(costs).any(1)
    return np.where(arrived, DONE, costs.argmin(1))


def togo(costs: np.ndarray, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[R] float32 actions to the goal, for costs [R, 7] of the first of them; 0 there."""
    arrived = (state[:, AGENT] == goal).all(1)
    return np.where(arrived, np.float32(0), costs.min(1))


def straight_line(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[R] the package's number of the next action straight at the goal, the longer axis first,
    whatever is in the way."""
    gap = goal - state[:, AGENT]
    along_x = np.abs(gap[:, 0]) >= np.abs(gap[:, 1])
    ahead = np.where(along_x, np.where(gap[:, 0] < 0, 2, 0), np.where(gap[:, 1] < 0, 3, 1))
    turns = (ahead - state[:, DIRECTION] / QUARTER) % 4
    action = np.where(turns == 0, FORWARD, np.where(turns == 3, LEFT, RIGHT))
    return np.where((gap == 0).all(1), DONE, action)


def _flow(free: np.ndarray, start: np.ndarray) -> np.ndarray:
    """[R, 4, g, g] actions to the nearest pose whose start value [R, 4, g, g] is finite, and that
    value, by turns and steps through free cells [R, g, g]."""
    cost = np.where(free[:, None], start, NEVER)
    while True:
        least = _first_actions(free, cost).min(1)
        better = np.minimum(cost, np.where(free[:, None], least, NEVER))
        if np.array_equal(better, cost):
            return cost
        cost = better


def _first_actions(free: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """[R, 3, 4, g, g] what a turn to the left, to the right or a step as the first action costs in
    all."""
    actions = np.full((len(cost), 3, *cost.shape[1:]), NEVER, np.float32)
    actions[:, LEFT] = 1 + np.roll(cost, 1, 1)  # to the direction before, of which it is the cost
    actions[:, RIGHT] = 1 + np.roll(cost, -1, 1)
    # The border is wall, so nothing comes around.
    entered = np.where(free[:, None], cost, NEVER)
    for direction, (dx, dy) in enumerate(STEPS):
        ahead = np.roll(entered[:, direction], (-dy, -dx), (1, 2))
        actions[:, FORWARD, direction] = 1 + ahead
    return actions


def _padded(actions: np.ndarray) -> np.ndarray:
    """[R, 7, 4, g, g] of [R, 3, 4, g, g], the other actions never."""
    padded = np.full((len(actions), 7, *actions.shape[2:]), NEVER, np.float32)
    padded[:, :3] = actions
    return padded


def _cells(at: np.ndarray, grid: int) -> np.ndarray:
    """[R, g, g] bool: the cells [R, 2]."""
    axis = np.arange(grid)
    return np.asarray((axis == at[:, 1:])[:, :, None] & (axis == at[:, :1])[:, None])


def _facing(at: np.ndarray, grid: int) -> np.ndarray:
    """[R, 4, g, g] bool: the poses right before cells [R, 2]."""
    return np.stack([_cells(at - step, grid) for step in STEPS], 1)
