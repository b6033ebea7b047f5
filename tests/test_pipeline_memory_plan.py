"""The memory model against what really is allocated."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from capo.packing import pack, report_logps
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig
from radflow.data.phantoms import make_studies
from radflow.models.loading import architecture
from radflow.models.lora import LoraConfig, add_lora
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.start import ModelConfig
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt
from radflow.pipeline.memory_plan import Load, Sizes, layer_bytes, memory, prefill_bytes, total, tower_bytes

CHECKPOINT = ModelConfig(path="somewhere")


class TextPrompt:
    study_id, num_tokens, next_position = "x", 192, 192
    input_ids = torch.arange(192) % 97 + 10
    positions = torch.arange(192).expand(3, 192)


def kept(policy, dtype):
    """Bytes that autograd holds for one token, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    held = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too: a freed address would be used again
        return tensor

    layout = pack([TextPrompt()], [[torch.arange(64) + 10]])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        report_logps(policy, layout, features=[torch.zeros(0, policy.hidden_size, dtype=dtype)])
    return sum(size for size, _ in held.values()) / layout.num_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", ["lora", "full"])
def test_activations_of_a_layer_are_as_the_formula_says(tmp_path, training, dtype):
    measured = {}
    for layers in (2, 4):
        folder = tmp_path / str(layers)
        build_tiny(folder, ["some text"] * 5, TinyConfig(hidden_size=512, layers=layers, vocab_size=300), seed=0)
        policy = load(folder, dtype=dtype)
        if training == "lora":
            add_lora(policy, LoraConfig(), seed=0)
        else:
            policy.vision.requires_grad_(False)
        measured[layers] = kept(policy, dtype)
        sizes = Sizes.of(architecture(folder), CHECKPOINT)
    formula = layer_bytes(sizes, bf16=dtype == torch.bfloat16)
    # the formula leaves out what does not grow with the widths: the adapters' inner values, a norm's scales
    assert (measured[4] - measured[2]) / 2 == pytest.approx(formula, rel=0.04)


def test_parameters_are_counted_as_loaded(tiny_dir):
    policy = load(tiny_dir)
    sizes = Sizes.of(architecture(tiny_dir), CHECKPOINT)
    assert sizes.parameters == sum(p.numel() for p in policy.parameters())
    add_lora(policy, LoraConfig(), seed=0)
    assert sizes.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations make inside a `with`, at their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in old:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.now += storage.nbytes()
                    self.seen[storage._cdata] = weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return found

    def free(self, address, size):
        del self.seen[address]
        self.now -= size


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("part", ["tower", "decoder"])
def test_what_reading_prompts_takes_is_as_the_formula_says(tmp_path, bf16, part, monkeypatch):
    # The plan is of a GPU, which reads the head as it is.
    monkeypatch.setattr("capo.rollout.pack_linear", lambda weight, bias: lambda rows: rows @ weight.t() + bias)
    monkeypatch.setattr("capo.rollout.LEAST_TOKENS", 10**9)  # all prompts in one prefill, as planned
    # the part in question is the wide one, so that its peak is that of the whole
    widths = {"hidden_size": 64, "vision_hidden": 256} if part == "tower" else {"hidden_size": 512, "vision_hidden": 64}
    build_tiny(tmp_path / "m", ["some text"] * 5, TinyConfig(layers=3, vocab_size=300, **widths), seed=0)
    policy = load(tmp_path / "m", dtype=torch.bfloat16 if bf16 else None)
    sizes = Sizes.of(architecture(tmp_path / "m"), CHECKPOINT)
    processor = ReportProcessor.load(tmp_path / "m", ProcessorConfig())
    studies = make_studies("chest", num_train=4, num_val=0, num_test=0, seed=5, size=448)
    prompts = [build_prompt(processor, study) for study in studies]
    tokens = len(prompts) * max(prompt.num_tokens for prompt in prompts)  # padded to the longest
    with Live() as live:
        options = {"sampling": SamplingConfig(max_new_tokens=2), "eos_id": 0, "slots": len(prompts)}
        suppressed = torch.zeros(policy.vocab_size, dtype=torch.bool)
        list(rollout(policy, [Request(prompt, (1,)) for prompt in prompts], suppressed=suppressed, **options))
    if part == "tower":
        patches = sum(int(prompt.image_grid_thw.prod(1).sum()) for prompt in prompts)
        expected = patches * tower_bytes(sizes, bf16=bf16)
    else:
        expected = tokens * prefill_bytes(sizes, bf16=bf16)
    assert live.peak == pytest.approx(expected, rel=0.15)


def test_a_sharded_model_by_hand():
    sizes = Sizes(
        parameters=8_000_000_000,
        trained=80_000_000,
        head=500_000_000,
        root=1_000_000_000,
        largest_block=200_000_000,
        layers=32,
        hidden=4096,
        intermediate=12288,
        cache=32 * 2 * 8 * 128,
        vision_hidden=1000,
        vision_intermediate=2000,
        patch=1000,
    )
    load = Load(micro_batch=1000, slots=32, cached=1500, prefill=2000)
    alone = memory(sizes, CHECKPOINT, load, sharding="replicate", world=8, local=8)
    # 64 MiB of gradients are on their way at one time
    assert alone["weights"] == 16.0 and alone["gradients and Adam"] == pytest.approx(0.96 + 64 * 2**20 / 1e9)
    # 1,536 cached tokens of 2 x 32 x 8 x 128 values of 2 bytes per slot; a prompt token holds as many, 5 D and 3 I; the
    # tower's 4 patches of 2 x 1000 + 30 x 1000 bytes are less
    caches, reading = 32 * 1536 * 65536 * 2, 2000 * 2 * (65536 + 5 * 4096 + 3 * 12288)
    assert alone["rollout"] == pytest.approx((caches + reading) / 1e9)
    # Per token and layer 14 D + 8 I and its 2 x 8 x 128 cached values of 2 bytes; 512 MiB of logits; kept caches.
    activations = 1000 * 32 * (14 * 4096 + 8 * 12288 + 2 * 2048)
    assert alone["training pass"] == pytest.approx((activations + 512 * 2**20 + caches) / 1e9)
    split = memory(sizes, CHECKPOINT, load, sharding="full", world=8, local=8)
    # all weights gathered; the caches go with them
    assert split["weights"] == 2.0 and split["rollout"] == pytest.approx(alone["rollout"] + 16.0)
    assert split["training pass"] == pytest.approx((activations + 512 * 2**20) / 1e9 + 2 * (1.0 + 3 * 0.2))
    assert total(alone) == pytest.approx(16 + 0.96 + 64 * 2**20 / 1e9 + alone["training pass"] + 1.5)


def test_full_training_in_bfloat16_by_hand():
    sizes = Sizes(
        parameters=1_000_000_000,
        trained=1_000_000_000,
        head=100_000_000,
        root=200_000_000,
        largest_block=50_000_000,
        layers=10,
        hidden=1000,
        intermediate=4000,
        cache=1000,
        vision_hidden=100,
        vision_intermediate=200,
        patch=100,
    )
    model, load = ModelConfig(training="full", path="somewhere"), Load(micro_batch=0, slots=0, cached=0, prefill=0)
    parts = memory(sizes, model, load, sharding="replicate", world=1, local=1)
    # float32 masters and a bfloat16 reference; for a rollout a whole bfloat16 copy
    assert (parts["weights"], parts["reference"], parts["gradients and Adam"]) == (4.0, 2.0, 12.0)
    assert parts["rollout"] == 2.0
    # the head's float32 gradient; root and its gradient, three blocks in bfloat16; the root's float32 gradient
    assert parts["training pass"] == pytest.approx(0.4 + 2 * (0.4 + 0.15) + 0.8)
    float32 = memory(sizes, model, load, sharding="replicate", world=1, local=1, bf16=False)
    assert (float32["reference"], float32["rollout"]) == (4.0, 0.0)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        Sizes.of(architecture(tmp_path), CHECKPOINT)
