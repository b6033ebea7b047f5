"""CAPO: GRPO with a clip range per case. Every module imports torch and the standard library only."""

__version__ = "0.1.0"
