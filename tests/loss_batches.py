"""Random micro-batches, and every named loss with its denominators bound."""

import torch

from capo.loss import capo_loss, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss

CRITICAL = torch.tensor([True, False, True, False])


def random_batch(seed, reports=4, tokens=6, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    behaviour = -torch.rand(reports, tokens, generator=generator, dtype=torch.float64) * 3
    logps = behaviour + spread * torch.randn(reports, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (reports,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    advantages = torch.randn(reports, generator=generator, dtype=torch.float64)
    reference = behaviour + 0.2 * torch.randn(reports, tokens, generator=generator, dtype=torch.float64)
    return logps.requires_grad_(), behaviour, advantages, mask, reference


def double_clip(critical=CRITICAL, **options):
    """The range in float64: in float32 0.2 is off by 3e-9."""
    eps, tightening = options.get("eps_normal", 0.2), options.get("tightening", 4.0)
    return torch.where(critical, torch.tensor(eps / tightening, dtype=torch.float64), eps)


# Every named loss with its step's denominators; `scale` is what one token of the first report weighs.
def every_loss(mask):
    tokens = int(mask.sum())
    return {
        "capo": lambda *a, **k: capo_loss(*a, clip=k.pop("clip", 0.2), num_reports=len(mask), **k),
        "grpo": lambda *a, **k: grpo_loss(*a, clip=k.pop("clip", 0.2), num_reports=len(mask), **k),
        "dapo": lambda *a, **k: dapo_loss(*a, **both(k, 0.2), num_tokens=tokens, **k),
        "gspo": lambda *a, **k: gspo_loss(*a, **both(k, 0.02), num_reports=len(mask), **k),
        "dr_grpo": lambda *a, **k: dr_grpo_loss(
            *a, clip=k.pop("clip", 0.2), num_reports=len(mask), max_tokens=mask.shape[1], **k
        ),
    }


def both(options, default):
    clip = options.pop("clip", default)
    return {"clip_low": clip, "clip_high": clip}


ALL = ["capo", "grpo", "dapo", "gspo", "dr_grpo"]


def ones(reports, tokens):
    return torch.ones(reports, tokens, dtype=torch.bool)
