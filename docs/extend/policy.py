"""A policy toward goals of your own: behaviour cloning in which near goals count more.
`train.heads.sizes.policies=[near_bc] planner.solver='{name: policy, policy: near_bc}'`"""

from jepa_wm import register
from jepa_wm.models.policies import Policy, weighted_error


@register("policies", "near_bc")
class NearBC(Policy):
    seeks_efficient = False  # all legs show how good it is, not those alone that are efficient

    def losses(self, legs):  # parts of episodes, from a start to a later goal
        answered = self.along(legs)  # [B, H, A] scaled action blocks of H model steps
        weights = legs.counts / legs.steps[:, None]  # [B, H]; 0 for blocks behind the goal
        return {"": weighted_error(answered, legs.blocks, weights)}
