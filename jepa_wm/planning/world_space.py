"""The space a solver searches in a world, and what doing nothing is there."""

from __future__ import annotations

from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.worlds.protocol import Idling, SaysActionKind, VectorWorld


def space_of(world: VectorWorld, *, frameskip: int, hold: bool) -> ActionSpace | DiscreteSpace:
    """Blocks of `frameskip` actions of the world; with `hold` one is searched a block. A discrete
    action's numbers are one-hot, as the data hold them."""
    idle = world.idle_action() if isinstance(world, Idling) else None
    if world.choices is not None:
        still = None if idle is None else int(idle[0])
        return DiscreteSpace.of_block(world.choices, block=frameskip, hold=hold, idle=still)
    low, high, longest = world.action_bounds
    absolute = isinstance(world, SaysActionKind) and world.action_kind == "absolute"
    return ActionSpace.of_block(
        low.tolist(), high.tolist(), max_norm=longest, block=frameskip, hold=hold,
        idle=None if idle is None else idle.tolist(), absolute=absolute,
    )  # fmt: skip
