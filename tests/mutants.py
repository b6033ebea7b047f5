"""Break the library on purpose, one small change at a time, and see that its tests notice (`make mutants`).

Each mutant is a bug somebody has shipped. The tests run on a copy of the checkout; one that survives is printed and
makes the exit status 1.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
# File, what stands there (once), what is put in its place.
MUTANTS = [
    ("capo/ratio.py", "logps - other_logps.detach()", "logps + other_logps.detach()"),
    ("capo/ratio.py", "torch.where(mask, logps - other_logps.detach(), 0.0)", "(logps - other_logps.detach()) * mask"),
    ("capo/ratio.py", "clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()\n\n\ndef", "exp()\n\n\ndef"),
    ("capo/ratio.py", "mask.sum(-1, keepdim=True).clamp(min=1)", "mask.shape[-1]"),
    ("capo/loss.py", "torch.minimum(ratio * advantages, clipped", "torch.maximum(ratio * advantages, clipped"),
    ("capo/loss.py", "torch.maximum(ratio, 1 - clip_low)", "torch.maximum(ratio, 1 + clip_low)"),
    ("capo/loss.py", "(ratios < 1 - low)", "(ratios <= 1 - low)"),
    ("capo/loss.py", "(ratios > 1 + high) & (advantages > 0)", "(ratios > 1 + high) & (advantages < 0)"),
    ("capo/loss.py", "objective - beta * divergence if", "objective + beta * divergence if"),
    ("capo/loss.py", "torch.where(advantages < 0, torch.maximum", "torch.where(advantages > 0, torch.maximum"),
    ("capo/loss.py", "/ lengths).sum() / num_reports", "/ lengths).mean()"),
    ("capo/loss.py", "num_tokens=num_reports * max_tokens", "num_tokens=num_reports"),
    ("capo/loss.py", "if tuple(value.shape) not in ((like.shape[0],), (like.shape[0], 1)):", "if value.numel() > 1e9:"),
    ("capo/clipping.py", "eps_normal / tightening, eps_normal)", "eps_normal, eps_normal / tightening)"),
    ("capo/advantages.py", "(group.sizes - 1).clamp(min=1)).sqrt()", "group.sizes.clamp(min=1)).sqrt()"),
    ("capo/advantages.py", "(std + eps)", "std"),
    ("capo/advantages.py", "/ sizes.clamp(min=1)", "/ len(values)"),
    ("capo/advantages.py", "torch.where(self.flat[self.index], 0.0, advantages)", "advantages"),
    ("capo/kl.py", "return difference.exp() - difference - 1", "return difference.exp() - difference"),
    ("capo/kl.py", "difference = -log_ratio(", "difference = log_ratio("),
    ("capo/kl.py", ".sub_(excess[rows, None])", ""),
    ("capo/logprobs.py", "entropy[rows] = normalisers[rows] - energy", "entropy[rows] = normalisers[rows] + energy"),
    ("capo/logprobs.py", "inside = (place >= 0)", "inside = (place > 0)"),
    ("capo/logprobs.py", "total = total * shrink + weights.sum(1)", "total = total + weights.sum(1)"),
    ("capo/vocabulary.py", "logits /= temperature", "logits *= temperature"),
    ("capo/vocabulary.py", "BANNED_LOGIT = -1e30", "BANNED_LOGIT = -torch.inf"),
    ("capo/metrics.py", '        totals.add("tokens", mask)', '        totals.add("tokens", ~mask)'),
    ("capo/metrics.py", "& (terms.advantages != 0)", ""),
    ("capo/warmup.py", "torch.stack(pooled[1:]).mean(0)", "torch.stack(pooled[1:]).sum(0)"),
    ("capo/warmup.py", "torch.cat([pooled[0], others])", "torch.cat([others, pooled[0]])"),
    ("capo/warmup.py", "unflatten(1, (height, width))", "unflatten(1, (width, height))"),
    ("capo/warmup.py", "if pooled[1:] else torch.zeros_like(pooled[0])", "if pooled[1:] else pooled[0]"),
    ("capo/warmup.py", " / (2 * self.grid**2) ** 0.5", ""),
    ("capo/warmup.py", "prevalence.clamp(0.01, 0.99).logit()", "prevalence.logit()"),
    ("capo/warmup.py", "* labels.shape[1] * len(logits))", "* labels.shape[1])"),
    ("capo/ratio.py", ".exp().clamp(max=cap)", ".exp()"),
    (
        "capo/ratio.py",
        "difference = difference.sum(-1, keepdim=True)",
        "difference = difference.mean(-1, keepdim=True)",
    ),
    ("capo/loss.py", "objective * torch.where(mask, weights.detach(), 1.0)", "objective * weights.detach()"),
    ("capo/packing.py", " & (rows[query] == rows[key])", ""),
    ("capo/static_decode.py", "        if version != self.version:", "        if False:"),
    ("capo/rollout.py", "(len(taken) + 1) * longest > tokens", "len(taken) * longest > tokens"),
    ("capo/ranks.py", "cards >= local_ranks else", "cards else"),
    ("capo/fsdp.py", "    policy.device = device\n", ""),
    ("models/vision.py", "return out if segments.back is None else out[segments.back]", "return out"),
    ("models/processing.py", "        self._check_sanitised(ids)\n", ""),
    ("models/lora.py", "                copied.copy_(own.t())", "                pass"),
    ("stages.py", "                self._check_stop()\n", ""),
    ("train.py", "            free_memory()\n", ""),
]
LOSSES = [
    f"tests/test_capo_{name}.py"
    for name in ("losses", "advantages", "kl", "logprobs", "metrics", "theory", "sampler_weights")
]
TESTS_OF = {
    "capo/warmup.py": ["tests/test_capo_warmup.py"],
    "capo/packing.py": ["tests/test_capo_packing.py"],
    "capo/static_decode.py": ["tests/test_capo_rollout.py"],
    "capo/rollout.py": ["tests/test_capo_rollout.py"],
    "capo/ranks.py": ["tests/test_capo_fsdp.py"],
    "capo/fsdp.py": ["tests/test_capo_fsdp.py"],
    "models/vision.py": ["tests/test_models_vision.py"],
    "models/processing.py": ["tests/test_models_processing.py"],
    "models/lora.py": ["tests/test_models_lora.py"],
    "stages.py": ["tests/test_stages.py"],
    "train.py": ["tests/test_stages.py"],
}  # the others: those of the losses


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "radflow"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv*", ".git", "runs"))
        if not all(passes(copy, tests) for tests in (LOSSES, *map(list, {tuple(t) for t in TESTS_OF.values()}))):
            sys.exit("the tests fail without any mutant; make them pass first")
        survivors = [mutant for mutant in tqdm(MUTANTS, "mutants", disable=None) if survives(copy, *mutant)]
    for path, old, new in survivors:
        print(f"survived: {path}: {old!r} -> {new!r}")
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants were noticed")
    sys.exit(bool(survivors))


def survives(copy: Path, path: str, old: str, new: str) -> bool:
    """Whether the tests pass with one change, which is undone afterwards."""
    text = (copy / path).read_text(encoding="utf-8")
    if text.count(old) != 1:
        sys.exit(f"{path}: expected {old!r} once, found it {text.count(old)} times; correct this list")
    (copy / path).write_text(text.replace(old, new), encoding="utf-8")
    try:
        return passes(copy, TESTS_OF.get(path, LOSSES))
    finally:
        (copy / path).write_text(text, encoding="utf-8")


def passes(copy: Path, tests: Sequence[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=copy, capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
