"""CAPO on a text-only Hugging Face model: an adapter for `capo.Policy`, then rollouts and updates with it.

    python docs/examples/text_policy.py

A Qwen2 with random weights learns to repeat the prompt's first token; every other prompt is critical.
"""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch.nn.functional import embedding
from transformers import Qwen2Config, Qwen2ForCausalLM

import capo

VOCABULARY, GROUP = 32, 8


class TextPolicy:
    """A causal language model of transformers without images."""

    def __init__(self, model):
        self.model, self.device, self.embed_tokens = model, model.device, model.get_input_embeddings()
        self.parameters, self.named_parameters = model.parameters, model.named_parameters

    def __call__(self, compute):
        return compute()

    def features(self, prompts):
        return [torch.zeros(0)] * len(prompts)

    def embed(self, prompts, features):
        return [self.embed_tokens(prompt.input_ids.to(self.device)) for prompt in prompts]

    def decoder(self, embeds, positions, mask, cache=None, wanted=None):
        attention = {"full_attention": mask}  # other families may need another form: Llama takes the tensor itself
        options = {"position_ids": positions[0], "attention_mask": attention, "past_key_values": cache}
        hidden = self.model.model(inputs_embeds=embeds, use_cache=cache is not None, **options).last_hidden_state
        return hidden if wanted is None else embedding(wanted, hidden.flatten(0, 1))

    def output_weight(self):
        return self.model.get_output_embeddings().weight


def build_policy():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return TextPolicy(Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, **shape)).eval())


def build_prompt(number):
    ids = torch.tensor([2 + number, 20, 21 + number % 3, 1])
    positions = torch.arange(len(ids)).expand(3, -1)  # Qwen-VL has three position axes; those of text are equal
    sizes = {"num_tokens": len(ids), "next_position": len(ids)}
    return SimpleNamespace(study_id=f"study {number}", input_ids=ids, positions=positions, **sizes)


def main(steps=20):
    policy, prompts, index = build_policy(), [build_prompt(i) for i in range(4)], torch.arange(4)
    reference = TextPolicy(copy.deepcopy(policy.model))
    config = capo.RlConfig(group_size=GROUP, optimizer=capo.OptimizerConfig(lr=1e-2))
    course = {"num_steps": steps * config.inner_epochs, "reference": lambda: nullcontext(reference)}
    trainer = capo.Trainer(policy, config.optimizer, **course)
    sampling, suppressed = capo.SamplingConfig(max_new_tokens=8), torch.zeros(VOCABULARY, dtype=torch.bool)
    engine = capo.Engine(policy, sampling=sampling, eos_id=0, suppressed=suppressed)
    clip, rows = capo.critical_clip(index % 2 == 1), []
    for step in range(steps):
        seeds = [tuple(capo.sample_seed(0, "rl", step, p.study_id, i) for i in range(GROUP)) for p in prompts]
        rollouts = list(engine.rollout(map(capo.Request, prompts, seeds)))
        groups = [tuple(r for r in rollouts if r.study_id == prompt.study_id) for prompt in prompts]
        hits = [r.response_ids == p.input_ids[0] for p, group in zip(prompts, groups, strict=True) for r in group]
        rewards = torch.stack([hit.float().mean() for hit in hits])
        advantages = capo.group_advantages(rewards, index.repeat_interleave(GROUP)).advantages.view(-1, GROUP)
        cases = list(map(capo.Case, prompts, groups, advantages, (index % 2 == 1).tolist(), clip.tolist()))
        metrics = trainer.capo_step(cases, config, temperature=1.0, suppressed=suppressed)
        rows.append({**metrics, "reward": float(rewards.mean())})
        print(f"step {step:2d}  reward {rows[-1]['reward']:.3f}  sampler gap {metrics['sampler_gap_max']:.1e}")
    return rows


if __name__ == "__main__":
    main()
