import pytest
import torch

from capo.config import OptimizerConfig
from capo.trainer import Trainer
from capo.warmup import LabelReader, WarmupConfig, read_labels
from radflow.models.qwen_vl import load
from radflow.pipeline.generation import build_prompt


def test_the_tower_learns_to_tell_two_images_apart_and_the_language_model_stays(policy, processor, studies):
    prompts = [build_prompt(processor, study) for study in studies[:6]]
    labels = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [0.0]])
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    reader = LabelReader(policy, policy.vision, torch.tensor([0.5]))
    trainer = Trainer(reader, OptimizerConfig(lr=2e-3), num_steps=40)
    losses = [read_labels(trainer, prompts, labels)["loss"] for _ in range(40)]
    # starts at the prevalence: log 2
    assert abs(losses[0] - 0.6931) < 1e-3 and losses[-1] < 0.1
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) != ("visual" in name), name


def test_the_tower_of_a_bf16_policy_learns_in_float32(tiny_dir, processor, studies):
    policy = load(tiny_dir, dtype=torch.bfloat16)
    prompts = [build_prompt(processor, study) for study in studies[:4]]
    labels = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    before = [p.detach().clone() for p in policy.vision.parameters()]
    reader = LabelReader(policy, policy.vision, torch.tensor([0.5]), grid=2)
    # steps of 1e-4 on weights of 0.1: bf16, whose neighbours there are 5e-4 apart, would drop them
    trainer = Trainer(reader, OptimizerConfig(lr=1e-4, final_lr_share=1.0), num_steps=8)
    losses = [read_labels(trainer, prompts, labels)["loss"] for _ in range(8)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01
    moved = [(a != b).float().mean() for a, b in zip(before, policy.vision.parameters(), strict=True)]
    assert min(moved) > 0.9
    assert policy.output_weight().dtype == torch.bfloat16
    assert policy.embed(prompts[:1], policy.features(prompts[:1]))[0].dtype == torch.bfloat16


class Given:
    """Features as they are given: each study has its images, [rows, columns, 2]."""

    device = torch.device("cpu")

    def output_weight(self):
        return torch.zeros(5, 2)

    def features(self, prompts):
        return [torch.cat([image.flatten(0, 1) for image in images]) for images in prompts]

    def feature_shapes(self, images):
        return [tuple(image.shape[:2]) for image in images]


UP, DOWN = [1.0, -1.0], [-1.0, 1.0]  # of mean 0 and variance 1: what the head normalises them to


@torch.no_grad()
def weigh_one(head, place):
    head.weight.zero_()
    head.weight[0, place] = 1.0


def test_the_grid_tells_where_in_the_image_and_in_which_image():
    left = torch.tensor([[UP, DOWN], [UP, DOWN]])
    right, lateral = left.flip(1), torch.tensor([[UP, UP, DOWN, DOWN]] * 2)
    reader = LabelReader(Given(), torch.nn.Identity(), torch.tensor([0.5]), grid=2)
    mean, cells = reader.heads
    weigh_one(mean, 0)
    # its inputs: channel 0 of the four cells, then channel 1; of the first image and then of the others
    weigh_one(cells, 0)
    of_mean, of_cells = reader([[left], [right]])
    assert of_mean.flatten().tolist() == [0.0, 0.0]
    torch.testing.assert_close(of_cells.flatten(), torch.tensor([1.0, -1.0]) / 8**0.5)
    weigh_one(cells, 8 + 3)  # lower right, of the others
    found = reader([[left], [left, lateral], [left, lateral, left], [left, lateral, right]])[1].flatten()
    torch.testing.assert_close(found, torch.tensor([0.0, -1.0, (-1.0 - 1.0) / 2, (-1.0 + 1.0) / 2]) / 8**0.5)


def test_a_tower_is_trained_through_the_grid_too(policy, processor, studies):
    prompts = [build_prompt(processor, study) for study in studies[:2]]
    assert [sum(h * w for h, w in policy.feature_shapes(p)) for p in prompts] == [
        len(images) for images in policy.features(prompts)
    ]
    trainer = Trainer(
        LabelReader(policy, policy.vision, torch.tensor([0.5]), grid=2), OptimizerConfig(lr=2e-3), num_steps=20
    )
    losses = [read_labels(trainer, prompts, torch.tensor([[1.0], [0.0]]))["loss"] for _ in range(20)]
    assert abs(losses[0] - 0.6931) < 1e-3 and losses[-1] < 0.1


def test_rare_and_absent_labels_start_at_their_prevalence(policy):
    reader = LabelReader(policy, policy.vision, torch.tensor([0.0, 0.25]))
    # an absent label is taken as 1 %: its logit must stay finite
    torch.testing.assert_close(reader.heads[0].bias.detach().sigmoid(), torch.tensor([0.01, 0.25]))


def test_a_negative_grid_is_refused():
    with pytest.raises(ValueError, match="expected grid of at least 0, got -1"):
        WarmupConfig(grid=-1)
