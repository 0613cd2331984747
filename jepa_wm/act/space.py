"""The space a solver searches in a world, and what doing nothing is there.

B episodes, a action numbers of one environment action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_wm.core.actions import ActionSpace, DiscreteSpace
from jepa_wm.worlds.protocol import Idling, SaysActionKind, VectorWorld


def idle_of(space: ActionSpace | DiscreteSpace, last: Tensor | None) -> Tensor | None:
    """[a] or [B, a] the action that takes no effort, where it is another than 0: the last one [B, a] where actions are
    places, else what the world says does nothing."""
    if isinstance(space, DiscreteSpace):
        return None
    if space.absolute:
        return torch.tensor(space.idle_step()[: space.size]) if last is None else last
    return None if space.idle is None else torch.tensor(space.idle)


def space_of(world: VectorWorld, *, frameskip: int, hold: bool) -> ActionSpace | DiscreteSpace:
    """Blocks of `frameskip` actions of the world; with `hold` one is searched a block. A discrete action's numbers are
    one-hot, as the data hold them."""
    idle = world.idle_action() if isinstance(world, Idling) else None
    if world.choices is not None:
        return DiscreteSpace.of_block(world.choices, block=frameskip, hold=hold, idle=0 if idle is None else int(idle[0]))
    low, high, longest = world.action_bounds
    absolute = isinstance(world, SaysActionKind) and world.action_kind == "absolute"
    return ActionSpace.of_block(
        low.tolist(), high.tolist(), max_norm=longest, block=frameskip, hold=hold,
        idle=None if idle is None else idle.tolist(), absolute=absolute,
    )  # fmt: skip
