"""KL of a policy to the SFT policy, per study."""

from collections.abc import Sequence

import torch

from capo.kl import k3
from capo.packing import micro_batches, pack, report_logps
from capo.rollout import Request, rollout
from capo.sampling import sample_seed
from radflow.data.studies import Study
from radflow.models.qwen_vl import QwenVL
from radflow.pipeline.generation import build_prompt, suppressed_mask
from radflow.pipeline.run import Run

TOKEN_BUDGET = 4096


@torch.no_grad()
def kl_to_reference(policy: QwenVL, reference: QwenVL, run: Run, studies: Sequence[Study]) -> list[float]:
    """KL(policy || reference) per token of each study, estimated (k3) on one report that the policy samples for it."""
    suppressed = suppressed_mask(policy, run.processor)
    prompts = [build_prompt(run.processor, study) for study in studies]
    requests = [Request(p, (sample_seed(run.config.seed, "drift", 0, p.study_id, 0),)) for p in prompts]
    written = {
        report.study_id: report.response_ids
        for report in rollout(
            policy,
            requests,
            sampling=run.config.rollout,
            eos_id=run.processor.eos_id,
            suppressed=suppressed,
            slots=run.config.rollout.slots,
        )
    }
    responses = [written[prompt.study_id] for prompt in prompts]
    found = [0.0] * len(prompts)
    lengths = [p.num_tokens + len(r) for p, r in zip(prompts, responses, strict=True)]
    for rows in micro_batches(lengths, TOKEN_BUDGET):
        layout = pack([prompts[i] for i in rows], [[responses[i]] for i in rows]).to(policy.device)
        options = {"temperature": run.config.rollout.temperature, "suppressed": suppressed}
        logps, of_reference = (report_logps(model, layout, **options)[0] for model in (policy, reference))
        per_report = k3(logps, of_reference, layout.mask).sum(-1) / layout.mask.sum(-1)
        for index, value in zip(rows, per_report.tolist(), strict=True):
            found[index] = value
    return found
