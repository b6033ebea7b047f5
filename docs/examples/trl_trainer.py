"""CAPO in TRL's GRPOTrainer by overriding one method (trl 1.16; the method is private, so pin the version).

    python docs/examples/trl_trainer.py

TRL samples, scores and computes advantages, behaviour and reference log-probabilities; the loss is ours. The model is a
random Qwen2 of a few thousand weights, the reward a toy, so that the example runs on a laptop without a network.
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from capo import LossMetrics, PolicyMetrics, capo_loss, critical_clip, k3

CASES = {"pneumothorax": True, "effusion": True, "clear": False, "normal": False}  # prompt -> critical


class CapoTrainer(GRPOTrainer):
    """GRPOTrainer with CAPO's loss. `critical` maps each prompt to whether its reference report is critical."""

    critical: dict[str, bool]
    last_metrics: PolicyMetrics

    def _compute_loss(self, model, inputs):
        prompts, reports, mask = inputs["prompt_ids"], inputs["completion_ids"], inputs["completion_mask"].bool()
        ids = torch.cat([prompts, reports], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        per_token = self._get_per_token_logps_and_entropies
        logps, entropy, _ = per_token(model, ids, attention, reports.size(1), compute_entropy=True)
        # TRL leaves them out if a batch is used once: then they are the policy's own
        behaviour_logps = inputs.get("old_per_token_logps")
        behaviour_logps = logps.detach() if behaviour_logps is None else behaviour_logps
        texts = self.processing_class.batch_decode(prompts, skip_special_tokens=True)
        critical = torch.tensor([self.critical[text.strip()] for text in texts], device=logps.device)
        # transformers averages over accumulation steps only if the loss does not
        num_reports = len(mask) * self.current_gradient_accumulation_steps
        options = {"kl": k3(logps, inputs["ref_per_token_logps"], mask), "beta": self.beta}
        batch = (logps, behaviour_logps, inputs["advantages"], mask)
        terms = capo_loss(*batch, clip=critical_clip(critical), num_reports=num_reports, **options)
        metrics = LossMetrics()
        metrics.add(terms, critical=critical, entropy=entropy)
        self.last_metrics = metrics.read()
        return terms.loss


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *CASES, "no", "acute", "finding", "left", "right", "large", "small"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def build_trainer(folder: str, *, num_iterations: int = 2, max_steps: int = 4) -> CapoTrainer:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **shape)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    start = f"{folder}/start"  # TRL loads the reference policy from where the policy came from
    Qwen2ForCausalLM(config).save_pretrained(start)
    tokenizer.save_pretrained(start)
    batch = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    course = {"max_steps": max_steps, "num_iterations": num_iterations, "learning_rate": 1e-2, "beta": 0.02}
    trainer = CapoTrainer(
        model=start,
        reward_funcs=lambda completions, **_: [float(text.count("acute")) for text in completions],
        args=GRPOConfig(output_dir=folder, use_cpu=True, bf16=False, **batch, **course, **quiet),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": list(CASES)}),
    )
    trainer.critical = CASES
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(folder, max_steps=20)
        trainer.train()
        print(trainer.last_metrics)
