"""Log-probabilities of the published architecture, cut to two layers: card against CPU, packed against alone."""

import copy

import torch
from gpu import work
from gpu.report import Bar, Report
from gpu.runner import Setting

GROUP = (37, 64, 50, 21)  # tokens of the reports of each study
FLOAT32, BFLOAT16 = Bar(at_most=1e-4), Bar(at_most=0.05)


def compare(setting: Setting, report: Report) -> None:
    device = work.start(setting)
    made = work.model(setting, layers=2, pixels=448)
    on_cpu = copy.deepcopy(made.policy).to("cpu")
    prompts = [made.prompt(number, pixels=112 if setting.small else 448) for number in range(2)]
    groups = [work.random_reports(on_cpu.vocab_size, GROUP) for _ in prompts]
    report.ran(
        f"{on_cpu.num_layers} layers, hidden size {on_cpu.hidden_size}, 2 studies of {prompts[0].num_tokens} tokens "
        f"with reports of {', '.join(map(str, GROUP))}; largest difference over the tokens, in nats"
    )
    truth = work.logps_of(on_cpu, work.layout_of(prompts, groups, torch.device("cpu")))
    layout = work.layout_of(prompts, groups, device)
    for dtype, bar in ((torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)):
        name = str(dtype).removeprefix("torch.")
        policy = work.cast(made.policy, dtype)
        packed = work.logps_of(policy, layout)
        gap = (packed - truth).abs()
        report.figure(f"{name}, card against CPU in float32", float(gap.max()), bar)
        report.figure(f"{name}, the same in the mean", float(gap.mean()))
        alone = torch.cat(
            [
                work.logps_of(policy, work.layout_of([prompt], [[response]], device))
                for prompt, group in zip(prompts, groups, strict=True)
                for response in group
            ]
        )
        report.figure(f"{name}, packed against alone", float((packed - alone).abs().max()), bar)
