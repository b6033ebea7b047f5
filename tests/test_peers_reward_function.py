"""Our reward in the trainers of TRL and verl for ten steps each, as docs/library/reward.md says (`make test-peers`)."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
import verl
from datasets import Dataset
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_policy_loss_vanilla
from verl.trainer.ppo.reward import extract_reward, get_custom_reward_fn
from verl.workers.config import ActorConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.reward_manager.batch import BatchRewardManager

from radflow.data.sections import parse_sections
from radflow.rewards import reward_function
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward

STEPS, GROUP, TOKENS = 10, 4, 12
REFERENCES = ["Findings: Left effusion. Impression: Left effusion.", "Findings: Clear lungs. Impression: Normal chest."]
PROMPTS = ["first", "second"]
WORDS = ["Findings", "Impression", ":", ".", "Left", "effusion", "Clear", "lungs", "Normal", "chest"]
PAGE = Path(__file__).parents[1] / "docs" / "library" / "reward.md"
TRL_BLOCK, VERL_BLOCK = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


def totals(reports, references):
    return [score.total for score in build_reward(RewardConfig(), parse_sections)(reports, references)]


def silent_on_normal(candidates, references):
    """A plug-in that has no answer for a report that says "Normal"."""
    return [None if "Normal" in text else float(text.count("effusion")) for text in candidates]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a random Qwen2 that writes words of reports, and one with its tokenizer, which would be loaded as
    Qwen2's own if it were next to the model's config."""
    folder = tmp_path_factory.mktemp("policy")
    words = ["<pad>", "<eos>", "<unk>", *PROMPTS, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    wrapped.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(words), num_key_value_heads=2, **shape)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    return folder


def train_with_trl(policy, folder, reward, *, chat=False):
    """(log of each step, [(completions, rewards)] of each call)."""
    calls = []

    def recorded(completions, **columns):
        rewards = reward(completions=completions, **columns)
        calls.append((completions, columns["reference"], rewards))
        return rewards

    prompts = [[{"role": "user", "content": text}] for text in PROMPTS] if chat else PROMPTS
    rows = {"prompt": prompts * 10, "reference": REFERENCES * 10}
    batch = {"per_device_train_batch_size": 2 * GROUP, "num_generations": GROUP, "max_completion_length": TOKENS}
    quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True}
    args = GRPOConfig(folder, max_steps=STEPS, learning_rate=1e-2, bf16=False, seed=0, **batch, **quiet)
    tokenizer, dataset = AutoTokenizer.from_pretrained(policy / "tokenizer"), Dataset.from_dict(rows)
    trainer = GRPOTrainer(str(policy / "model"), recorded, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return [log for log in trainer.state.log_history if "reward" in log], calls


@pytest.mark.parametrize("chat", [False, True])
def test_trl_trains_ten_steps_with_the_reward_of_the_page(policy, tmp_path, chat):
    names = {}
    exec(TRL_BLOCK, names)
    logs, calls = train_with_trl(policy, str(tmp_path), names["report_reward"], chat=chat)
    assert len(logs) == len(calls) == STEPS
    for log, (completions, references, _) in zip(logs, calls, strict=True):
        reports = [completion[0]["content"] for completion in completions] if chat else completions
        assert log["reward"] == pytest.approx(np.mean(totals(reports, references)), abs=1e-5)
    assert all(math.isfinite(log["loss"]) for log in logs) and any(log["grad_norm"] > 0 for log in logs)


def test_trl_leaves_a_missing_reward_out_of_the_mean_and_of_the_gradient(policy, tmp_path):
    config = RewardConfig(workers=0, preset="plugin", plugin=f"{__name__}:silent_on_normal")
    logs, calls = train_with_trl(policy, str(tmp_path), reward_function(config, parse_sections))
    for log, (completions, _, rewards) in zip(logs, calls, strict=True):
        assert [reward is None for reward in rewards] == ["Normal" in text for text in completions]
        known = [reward for reward in rewards if reward is not None]
        assert known and len(known) < len(rewards) and log["reward"] == pytest.approx(np.mean(known), abs=1e-5)
        assert math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"])


def verl_config(policy, module):
    """verl's own defaults of the reward, with the two options of the page."""
    config = OmegaConf.load(Path(verl.__file__).parent / "trainer" / "config" / "reward" / "reward.yaml")
    config.num_workers = 2
    config.custom_reward_function.path, config.custom_reward_function.name = str(module), "compute_score"
    return OmegaConf.create(
        {"reward": config, "actor_rollout_ref": {"model": {"tokenizer_path": str(policy / "tokenizer")}}}
    )


class VerlLoop:
    """verl's GRPO step with a policy on the CPU: its trainer without its rollout engine, which needs a GPU."""

    def __init__(self, policy):
        self.tokenizer = AutoTokenizer.from_pretrained(policy / "tokenizer")
        self.model = Qwen2ForCausalLM.from_pretrained(policy / "model")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.actor = ActorConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=1, rollout_n=GROUP)

    def sample(self):
        """A batch as verl's agent loop makes it: GROUP reports of each prompt."""
        prompts = self.tokenizer(PROMPTS, return_tensors="pt").input_ids.repeat_interleave(GROUP, dim=0)
        ids = self.model.generate(prompts, do_sample=True, max_new_tokens=TOKENS, min_new_tokens=TOKENS, top_k=0)
        truths = np.array([{"ground_truth": text} for text in REFERENCES for _ in range(GROUP)])
        extra = np.array([{} for _ in truths])
        return DataProto.from_dict(
            {"prompts": prompts, "responses": ids[:, prompts.size(1) :], "attention_mask": torch.ones_like(ids)},
            {"reward_model": truths, "data_source": np.array(["radiology"] * len(truths)), "extra_info": extra},
        )

    def reports(self, batch):
        return self.tokenizer.batch_decode(batch.batch["responses"], skip_special_tokens=True)

    def update(self, batch, rewards):
        """verl's advantages, loss and optimizer step; the norm of the gradient."""
        prompts, responses = batch.batch["prompts"], batch.batch["responses"]
        logits = self.model(torch.cat([prompts, responses], dim=1)).logits[:, prompts.size(1) - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]
        mask = torch.ones_like(logps)
        groups = np.repeat(np.arange(len(PROMPTS)), GROUP)
        advantages, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, groups)
        loss, _ = compute_policy_loss_vanilla(
            old_log_prob=logps.detach(), log_prob=logps, advantages=advantages, response_mask=mask, config=self.actor
        )
        loss.backward()
        engine = SimpleNamespace(
            module=self.model, optimizer=self.optimizer, optimizer_config=SimpleNamespace(clip_grad=1.0), scaler=None
        )
        engine._qat_enabled = False
        norm = FSDPEngine.optimizer_step(engine)
        self.optimizer.zero_grad()
        return norm

    def weights(self):
        return torch.cat([weight.detach().flatten() for weight in self.model.parameters()])


@pytest.fixture(scope="module")
def ray_cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_verl_trains_ten_steps_with_the_reward_of_the_page(policy, tmp_path, ray_cluster):
    (tmp_path / "my_reward.py").write_text(VERL_BLOCK)
    manager = RewardLoopManager(verl_config(policy, tmp_path / "my_reward.py"))
    torch.manual_seed(0)
    loop = VerlLoop(policy)
    for _ in range(STEPS):
        before, batch = loop.weights(), loop.sample()
        rewards, _ = extract_reward(manager.compute_rm_score(batch))
        expected = totals(loop.reports(batch), np.repeat(REFERENCES, GROUP).tolist())
        torch.testing.assert_close(rewards.sum(-1), torch.tensor(expected))
        assert math.isfinite(loop.update(batch, rewards)) and not torch.equal(before, loop.weights())


def test_verl_skips_the_update_of_a_group_with_a_missing_reward(policy):
    config = RewardConfig(workers=0, preset="plugin", plugin=f"{__name__}:silent_on_normal")
    loop = VerlLoop(policy)
    score = reward_function(config, parse_sections, trainer="verl_batch")
    rewards = BatchRewardManager(loop.tokenizer, 0, score)(batch := loop.sample())
    missing = ["Normal" in text for text in loop.reports(batch)]
    assert rewards.sum(-1).isnan().tolist() == missing and any(missing)
    before = loop.weights()
    assert math.isnan(loop.update(batch, rewards)) and torch.equal(before, loop.weights())


def test_verl_loads_the_function_by_path(policy, tmp_path):
    (tmp_path / "my_reward.py").write_text(VERL_BLOCK)
    compute_score = get_custom_reward_fn(verl_config(policy, tmp_path / "my_reward.py"))
    assert compute_score(data_source="", solution_str=REFERENCES[0], ground_truth=REFERENCES[0], extra_info={}) == 4
