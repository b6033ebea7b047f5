"""Qwen-VL checkpoints in, the few operations the algorithm needs, published artefacts out."""
