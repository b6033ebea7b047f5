"""Qwen-VL models: loading, the operations that training and generation need, LoRA, and export."""
