"""Report text in, numbers out. Importing loads neither torch nor transformers."""

from radflow.rewards.trainers import reward_function

__all__ = ["reward_function"]
