"""Energy map and search with a released V-JEPA 2-AC: which way is the goal image, by what the
model imagines?

`python docs/vjepa2_ac.py AC.pt TRAJECTORY.npz --out energy.png` reads `observations` (1, 2, h, w,
3) and `states` (1, 2, 7), start and goal, as the public example has them. `--size` names the
model; one of another size is told by `--sizes` instead."""

import argparse
from functools import partial

import numpy as np
import torch
from matplotlib import pyplot

from jepa_wm.data.images import resized, to_input
from jepa_wm.features.weights import (
    Size,
    load_action_predictor,
    load_encoder,
    named_size,
    take_plain_frames,
)
from jepa_wm.models.distance import latent_distance
from jepa_wm.models.vjepa2_ac import VJEPA2AC, difference, normalised, parted, with_pose
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.search import search
from jepa_wm.planning.settings import CEM
from jepa_wm.planning.terms import ToGoal

BOX = 0.075  # m, how far one step may go along each axis


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "weights", help="a released file with encoder and action-conditioned predictor"
    )
    parser.add_argument("trajectory", help="npz with observations and states")
    parser.add_argument("--size", default="vit_giant")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        metavar=("PX", "HEADS", "ACTION_HEADS"),
        help="instead of --size",
    )
    parser.add_argument("--grid", type=int, default=9, help="places along each axis of the map")
    parser.add_argument("--num-samples", type=int, default=400)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--out", default="energy.png")
    return parser.parse_args()


@torch.no_grad()
def main():
    words = arguments()
    pixels, heads, action_heads = words.sizes or (0, 0, 0)
    size = (
        Size(pixels, heads, action_heads=action_heads) if words.sizes else named_size(words.size)
    )
    encoder = take_plain_frames(load_encoder(words.weights, size))
    model = load_action_predictor(words.weights, size, patch=encoder.patch_size)
    example = np.load(words.trajectory)
    frames = torch.from_numpy(resized(example["observations"][0], size.image_size))
    clip = to_input(frames, size.image_size)[:, None].expand(
        -1, encoder.tubelet_size, -1, -1, -1
    )  # each frame a still
    start, goal = normalised(encoder(clip))[:, None]  # [1, n, D]
    poses = torch.from_numpy(example["states"][0]).float()
    dynamics = VJEPA2AC(model)
    context, past = with_pose(start, poses[:1])[:, None], torch.zeros(1, 0, 7)
    term = ToGoal(goal=goal, distance=partial(latent_distance, kind="l1"))

    def cost(plans):
        return term(parted(dynamics.fast_rollout(context, past, plans))[0], plans)

    axis = torch.linspace(-BOX, BOX, words.grid)
    moves = torch.zeros(1, words.grid**2, 1, 7)
    moves[0, :, 0, 0], moves[0, :, 0, 2] = (
        place.flatten() for place in torch.meshgrid(axis, axis, indexing="ij")
    )
    energy = cost(moves)[0].view(words.grid, words.grid)

    box = torch.tensor([BOX, BOX, BOX, 0, 0, 0, 0.75])  # the hand does not turn
    settings = CEM(num_samples=words.num_samples, iterations=words.iterations, elites=10)
    solver = settings.make(ActionSpace(tuple(-box), tuple(box)), 1)
    plan = search(solver, cost, generator=[torch.Generator().manual_seed(0)])
    true = difference(poses[0], poses[1])
    moves = 0 * true, true, plan.actions[0, 0]
    energies = [float(cost(move.view(1, 1, 1, 7))) for move in moves]
    print(
        "energy of doing nothing, of the move that was made, of the best found:",
        *(f"{energy:.4f}" for energy in energies),
    )
    print(
        "taken, m:",
        *(f"{x:.3f}" for x in true[:3]),
        "found, m:",
        *(f"{x:.3f}" for x in plan.actions[0, 0, :3]),
    )

    pyplot.imshow(energy.T, origin="lower", extent=(-BOX, BOX, -BOX, BOX), cmap="viridis")
    pyplot.plot(*true[[0, 2]], "w*", label="taken")
    pyplot.plot(*plan.actions[0, 0, [0, 2]], "wo", fillstyle="none", label="found")
    pyplot.xlabel("x, m"), pyplot.ylabel("z, m"), pyplot.legend(), pyplot.colorbar(label="energy")
    pyplot.savefig(words.out)


if __name__ == "__main__":
    main()
