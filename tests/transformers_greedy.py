"""What transformers' own `generate` writes for a prompt of ours: the independent implementation of greedy decoding."""

import torch

from radflow.pipeline.generation import suppressed_mask


def greedy(policy, processor, prompt, *, max_new_tokens):
    """[T] token ids behind the prompt, EOS included."""
    ids = prompt.input_ids[None]
    return policy.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == processor.image_id).int(),
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=processor.eos_id,
        pad_token_id=processor.eos_id,
        suppress_tokens=suppressed_mask(policy, processor).nonzero()[:, 0].tolist(),
    )[0, prompt.num_tokens :]
