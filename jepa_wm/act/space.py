"""The space a solver searches in a world."""

from __future__ import annotations

from jepa_wm.core.actions import ActionSpace, DiscreteSpace
from jepa_wm.worlds.protocol import VectorWorld


def space_of(world: VectorWorld, *, frameskip: int, hold: bool) -> ActionSpace | DiscreteSpace:
    """Blocks of `frameskip` actions of the world; with `hold` one is searched a block. A discrete action's numbers are
    one-hot, as the data hold them."""
    if world.choices is not None:
        return DiscreteSpace.of_block(world.choices, block=frameskip, hold=hold)
    low, high, longest = world.action_bounds
    return ActionSpace.of_block(low.tolist(), high.tolist(), max_norm=longest, block=frameskip, hold=hold)
