"""CAPO in a training loop of its own, with torch and `capo` only.

    python docs/examples/plain_loop.py

The policy is a small recurrent network that writes six tokens about a study, which is a number here. The reward is the
share of tokens that are the study's own; every other study is critical.
"""

import torch
from torch import Tensor, nn

from capo import LossMetrics, capo_loss, critical_clip, group_advantages, k3

STUDIES, GROUP, TOKENS, VOCABULARY = 8, 8, 6, 12


class Writer(nn.Module):
    """Next-token log-probabilities given a study and the tokens so far."""

    def __init__(self) -> None:
        super().__init__()
        self.study, self.token = nn.Embedding(STUDIES, 32), nn.Embedding(VOCABULARY + 1, 32)
        self.memory, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, VOCABULARY)

    def forward(self, studies: Tensor, tokens: Tensor) -> Tensor:
        """studies [B], tokens [B, T] -> log-probabilities of tokens 1 to T + 1, [B, T + 1, V]."""
        start = torch.full((len(tokens), 1), VOCABULARY)
        hidden, _ = self.memory(self.token(torch.cat([start, tokens], 1)), self.study(studies)[None])
        return self.head(hidden).log_softmax(-1)

    def logps(self, studies: Tensor, tokens: Tensor) -> Tensor:
        return self(studies, tokens[:, :-1]).gather(-1, tokens[..., None])[..., 0]

    @torch.no_grad()
    def sample(self, studies: Tensor, generator: torch.Generator) -> Tensor:
        tokens = torch.zeros(len(studies), 0, dtype=torch.int64)
        for _ in range(TOKENS):
            probabilities = self(studies, tokens)[:, -1].exp()
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], 1)
        return tokens


def main(steps: int = 60) -> float:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy, reference = Writer(), Writer()
    reference.load_state_dict(policy.state_dict())
    optimiser = torch.optim.Adam(policy.parameters(), lr=5e-3)
    studies = torch.arange(STUDIES).repeat_interleave(GROUP)
    clip = critical_clip(studies % 2 == 1, eps_normal=0.2)  # [B]: 0.2, or 0.05 where critical
    mask = torch.ones(len(studies), TOKENS, dtype=torch.bool)
    for step in range(steps):
        reports = policy.sample(studies, generator)
        rewards = (reports == studies[:, None]).float().mean(1)
        advantages = group_advantages(rewards, studies).advantages
        with torch.no_grad():
            behaviour_logps, reference_logps = policy.logps(studies, reports), reference.logps(studies, reports)
        metrics = LossMetrics()
        for _ in range(3):  # inner epochs: with a single update the range has no effect
            for rows in torch.arange(len(studies)).split(16):  # micro-batches: the gradient does not depend on them
                logps = policy.logps(studies[rows], reports[rows])
                batch = (logps, behaviour_logps[rows], advantages[rows], mask[rows])
                kl = k3(logps, reference_logps[rows], mask[rows])
                terms = capo_loss(*batch, clip=clip[rows], num_reports=len(studies), kl=kl, beta=0.01)
                terms.loss.backward()
                metrics.add(terms, critical=clip[rows] < 0.2)
            optimiser.step()
            optimiser.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            now = metrics.read(num_updates=3)
            clipped = f"clipped high: critical {now.clip_high_critical:.2f}, normal {now.clip_high_normal:.2f}"
            print(f"step {step:3d}  reward {rewards.mean():.3f}  kl {now.kl:.3f}  {clipped}")
    return float(rewards.mean())


if __name__ == "__main__":
    main()
