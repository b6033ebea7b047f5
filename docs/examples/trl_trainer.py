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

from capo.clipping import critical_clip
from capo.kl import k3
from capo.loss import capo_loss
from capo.metrics import LossMetrics, PolicyMetrics

CASES = {"pneumothorax": True, "effusion": True, "clear": False, "normal": False}  # prompt -> critical


class CapoTrainer(GRPOTrainer):
    """GRPOTrainer with CAPO's loss. `critical` maps each prompt to whether its reference report is critical."""

    critical: dict[str, bool]
    last_metrics: PolicyMetrics

    def _compute_loss(self, model, inputs):
        prompts, reports, mask = inputs["prompt_ids"], inputs["completion_ids"], inputs["completion_mask"].bool()
        logps, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([prompts, reports], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            reports.size(1),
            compute_entropy=True,
        )
        behaviour_logps = inputs.get("old_per_token_logps")
        texts = self.processing_class.batch_decode(prompts, skip_special_tokens=True)
        critical = torch.tensor([self.critical[text.strip()] for text in texts], device=logps.device)
        terms = capo_loss(
            logps,
            # TRL leaves them out where a batch is used once: then they are the policy's own
            logps.detach() if behaviour_logps is None else behaviour_logps,
            inputs["advantages"],
            mask,
            clip=critical_clip(critical),
            # transformers averages over accumulation steps only where the loss does not do it itself
            num_reports=len(mask) * self.current_gradient_accumulation_steps,
            kl=k3(logps, inputs["ref_per_token_logps"], mask),
            beta=self.beta,
        )
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
    trainer = CapoTrainer(
        model=start,
        reward_funcs=lambda completions, **_: [float(text.count("acute")) for text in completions],
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            num_generations=4,
            num_iterations=num_iterations,
            max_completion_length=8,
            max_steps=max_steps,
            learning_rate=1e-2,
            beta=0.02,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
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
