"""The sections of the proof, the most valuable first, and the rows of the table that they fill."""

from gpu.runner import Section

CARD = "versions, copy bandwidth, GEMM rate"
FLEX = "FlexAttention compiled against dense mask, 20 lengths, head sizes 32/48/128, with gradients"
LOGPS = "log-probs of a 2-layer cut: CPU float32, CUDA float32, bf16; packed against alone"
DECODING = "CUDA-graph decoding against eager greedy, over two batches of different size"
SAMPLER = "sampler gap, KL before the first update"
SPEED = (
    "3B random weights: tokens/s and share of the bandwidth roofline at 4 to 64 slots, G 4, 8, 16, against HF generate "
    "(static cache, compiled)"
)
MEMORY = "vision tower; RL step under a 24 GB cap; SFT step of 4,096 tokens"
RANKS = "FSDP2 + NCCL + DCP at world size 1; two ranks on one card over gloo"
RUNS = "demo killed in RL and resumed; IU config for 30 steps"
ROWS = (CARD, FLEX, LOGPS, DECODING, SAMPLER, SPEED, MEMORY, RANKS, RUNS)

# Seconds on one H100, as far as they can be foreseen; compiling and starting programs takes most of them.
SECTIONS = (
    Section("card", CARD, 12, "gpu.card:measure"),
    Section("flex", FLEX, 70, "gpu.flex:compare"),
    Section("logps", LOGPS, 35, "gpu.logps:compare"),
    Section("graphs", DECODING, 30, "gpu.decoding:compare"),
    Section("sampler", SAMPLER, 25, "gpu.sampler:compare"),
    Section("rl_24gb", MEMORY, 35, "gpu.memory:rl_step"),
    Section("decode", SPEED, 65, "gpu.speed:decode"),
    Section("fsdp", RANKS, 20, "gpu.ranks:alone"),
    Section("two_ranks", RANKS, 40, "gpu.ranks:two"),
    Section("sft_4096", MEMORY, 25, "gpu.memory:sft_step"),
    Section("resume", RUNS, 60, "gpu.runs:resume"),
    Section("tower", MEMORY, 15, "gpu.memory:tower"),
    Section("iu_xray", RUNS, 25, "gpu.runs:iu_xray"),
    Section("generate", SPEED, 55, "gpu.speed:transformers"),
    Section("compiled", SPEED, 25, "gpu.speed:compiled"),
)
