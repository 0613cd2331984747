"""The action-conditioned predictor: no frame sees the future, and everything it is given
counts."""

import pytest
import torch

from jepa_wm.models.predictor import ActionPredictor, ActionPredictorSizes


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = ActionPredictorSizes(
        encoder_width=12, grid=2, width=24, depth=2, num_heads=2, action_size=3, state_size=5,
        extrinsics_size=4,
    )  # fmt: skip
    made = ActionPredictor(sizes)
    for p in made.parameters():  # far from the small initial values, so that a wrong path shows
        torch.nn.init.normal_(p, std=0.3)
    return made.eval().requires_grad_(False)


def inputs(frames=3):
    g = torch.Generator().manual_seed(1)
    sizes = ((4, 12), (3,), (5,), (4,))
    return [torch.randn(2, frames, *size, generator=g) for size in sizes]


@pytest.mark.parametrize("camera", [False, True])
def test_a_frame_is_predicted_from_what_came_before_it_alone(model, camera):
    given = inputs()[: 4 if camera else 3]
    whole = model(*given)
    assert whole.shape == (2, 3, 4, 12)
    for frames in (1, 2):
        torch.testing.assert_close(
            model(*(x[:, :frames] for x in given)), whole[:, :frames], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("which", range(4))
def test_each_input_counts_from_its_frame_on(model, which):
    given = inputs()
    before = model(*given)
    given[which][:, 1] += 1
    change = (model(*given) - before).abs().amax((0, 2, 3))
    assert change[0] < 1e-5 and (change[1:] > 1e-3).all()


def test_what_stands_before_the_patches_turns_in_time_only():
    sizes = ActionPredictorSizes(encoder_width=12, grid=2, width=24, depth=1, num_heads=2)
    made = ActionPredictor(sizes)
    where = made._positions(2, 2, torch.device("cpu")).view(2, 6, 3)
    assert where[:, :2].tolist() == [[[0, 0, 0]] * 2, [[1, 0, 0]] * 2]
    assert where[1, 2:].tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]


def test_another_grid_is_refused(model):
    with pytest.raises(ValueError, match="tokens has 9 tokens a frame, the model 2 x 2"):
        model(torch.zeros(1, 1, 9, 12), *inputs(1)[1:3])
