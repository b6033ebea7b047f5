"""The radgraph package 0.1.18 on transformers 5, with the two methods of tokenizers restored that it calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase


@contextmanager
def restored_methods() -> Iterator[None]:
    """`encode_plus` is the call itself; special ids stand before and after a single sequence."""

    def encode_plus(tokenizer, text, text_pair=None, **options):
        return tokenizer(text, text_pair, **options)

    def build_inputs_with_special_tokens(tokenizer, ids):
        whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        start = whole.index(bare[0])
        return whole[:start] + list(ids) + whole[start + len(bare) :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "encode_plus", encode_plus, raising=False)
        patch.setattr(
            PreTrainedTokenizerBase, "build_inputs_with_special_tokens", build_inputs_with_special_tokens, raising=False
        )
        yield


def load_package(folder: Path, model: str):
    """The package's RadGraph on folder/MODEL, on the CPU; call inside `restored_methods`."""
    from radgraph import RadGraph

    return RadGraph(model_type=model, model_cache_dir=str(folder), cuda=-1)
