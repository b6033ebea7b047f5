"""One RL step of Qwen2.5-VL-3B's architecture on a GPU, ours against TRL's GRPOTrainer: same model, image, LoRA, group
size, tokens, inner epochs and KL.

    make gpu-trl                        on a machine with an NVIDIA card and trl
    make gpu-trl ARGS=--small           tiny sizes on a CPU: the program itself is tested

Both once with all activations kept and once with activations recomputed, as TRL does by default. Processes, deadline,
result file and options are those of gpu_proof.py.
"""

import sys

from gpu.runner import Section
from gpu_proof import main

ROW = "an RL step against TRL"
# As TRL is by default first; without recomputing it may not fit.
SECTIONS = (
    Section("radflow", ROW, 90, "gpu.steps:radflow"),
    Section("radflow_recomputed", ROW, 90, "gpu.steps:radflow_recomputed"),
    Section("trl_recomputed", ROW, 180, "gpu.steps:trl_recomputed"),
    Section("trl", ROW, 150, "gpu.steps:trl"),
)

if __name__ == "__main__":
    sys.exit(main(SECTIONS, description=__doc__, kind="trl", small_jobs=1))
