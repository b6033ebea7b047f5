"""Rollouts by a served engine: prompts go to an OpenAI-compatible endpoint, after the adapter of the step.

vLLM and SGLang speak these calls: a chat completion with images, token ids and log-probabilities, and one that loads a
LoRA adapter from a folder.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import TimeoutError as StillWaiting
from multiprocessing.pool import IMapIterator, ThreadPool
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from capo.ranks import Ranks
from capo.rollout import Request
from capo.sampling import SamplingConfig
from capo.stopping import StopRequested, StopSignal
from capo.types import Prompt, Rollout
from radflow.chat.config import EndpointConfig
from radflow.chat.endpoint import Endpoint, TroubleError
from radflow.data.image_files import as_data_uri
from radflow.data.studies import Study
from radflow.models.adapter_files import list_targets, save_adapter
from radflow.models.lora import LoraConfig
from radflow.models.processing import ReportProcessor
from radflow.models.qwen_vl import QwenVL
from radflow.models.served_chat import served_messages
from radflow.pipeline.generation import read_inputs

UNKNOWN = -9999.0  # vLLM's log-probability of a token that it has none for
TOKEN_ID = re.compile(r"token_id:(\d+)")  # how vLLM names tokens under --return-tokens-as-token-ids
NEVER = -100.0  # the lowest logit bias of the protocol


@dataclass(frozen=True)
class RolloutConfig(SamplingConfig):
    """How the reports of an RL step are sampled."""

    engine: Literal["local", "served"] = "local"
    """local: each rank decodes its share. served: the server of section `served` does, for models that no card holds
    whole; with model.training lora."""


@dataclass(frozen=True)
class ServedConfig(EndpointConfig):
    """The server that samples reports if rollout.engine is served; its base model is sft/model of the run."""

    section: ClassVar[str] = "served"
    server: Literal["vllm", "sglang"] = "vllm"
    """Whose calls load an adapter and name it."""
    adapters: Path | None = None
    """The run's folder rl/served_adapter, as the server sees it; none: under the path that it has here."""
    concurrency: int = 64
    """Reports that one process asks for at a time."""
    timeout_s: float = 600.0
    """Seconds that one report, or loading an adapter, may take."""


class ServedAdapter:
    """The adapter of a policy in training, loaded by a server under a name made of its content: what a server caches
    under a name, keys and values of prompts too, is never of other weights.

    Args:
        base: the model that the server runs, as the adapter's config names it.
        folder: for the adapter in use; the server reads it.
    """

    def __init__(
        self, policy: QwenVL, lora: LoraConfig, config: ServedConfig, *, base: str, folder: Path, ranks: Ranks
    ) -> None:
        assert config.url is not None
        self.policy, self.lora, self.config, self.base, self.ranks = policy, lora, config, base, ranks
        self.folder, self.loaded = folder, ""
        url = config.url.rstrip("/")
        # SGLang's calls that are not OpenAI's are outside /v1.
        self.endpoint = Endpoint(replace(config, url=url.removesuffix("/v1") if config.server == "sglang" else url))

    def publish(self) -> str:
        """The name that a request gives as its model, for the adapter as it is now. All ranks must call this.

        Raises:
            ValueError: the server did not load it.
        """
        new = self.folder.with_name(self.folder.name + ".new")
        save_adapter(self.policy, new, self.lora, base=self.base, write=self.ranks.is_main)
        name = self.ranks.all_gather(self._load(new) if self.ranks.is_main else "")[0]
        return f"{self.config.model}:{name}" if self.config.server == "sglang" else name

    def _load(self, new: Path) -> str:
        list_targets(new)
        content = b"".join(file.read_bytes() for file in sorted(new.iterdir()))
        name = f"radflow-{hashlib.sha256(content).hexdigest()[:16]}"
        shutil.rmtree(self.folder / name, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        new.rename(self.folder / name)
        if not self.loaded:
            self._post_unload(name)  # a run that was killed may have loaded it
        if name != self.loaded:
            self._post_load(name)
            self.loaded = name
        for old in [path for path in self.folder.iterdir() if path.name != name]:  # of a killed run too
            self._post_unload(old.name)
            shutil.rmtree(old)
        return name

    def _post_unload(self, name: str) -> None:
        with suppress(TroubleError):  # the server does not know it
            self.endpoint.post("/unload_lora_adapter", {"lora_name": name}, text=True)

    def _post_load(self, name: str) -> None:
        path = (self.config.adapters or self.folder.resolve()) / name
        try:
            self.endpoint.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, text=True)
        except TroubleError as trouble:
            advice = "let the server load adapters at run time and read that folder (docs/distributed.md), then rerun"
            raise ValueError(
                f"{self.config.url}: expected the server to load the adapter {path}, got {trouble}; {advice}"
            ) from None


class ServedEngine:
    """Samples reports as `capo.rollout.Engine` does, by asking a server for each.

    Args:
        studies: by id; images and texts of the requests.
        suppressed: [V] bool, tokens never sampled. The server is asked to leave them out.
        needs_logps: the loss weighs reports by the sampler's log-probabilities, so that there must be some.
    """

    def __init__(
        self,
        adapter: ServedAdapter,
        processor: ReportProcessor,
        studies: Mapping[str, Study],
        *,
        sampling: SamplingConfig,
        suppressed: Tensor,
        needs_logps: bool,
    ) -> None:
        self.adapter, self.config = adapter, adapter.config
        self.processor, self.studies, self.sampling = processor, studies, sampling
        self.suppressed, self.needs_logps = suppressed.tolist(), needs_logps
        self.endpoint = Endpoint(self.config)
        self.options = self._options()
        self.say = cache(partial(print, flush=True))  # once

    def rollout(self, requests: Iterable[Request], *, stop: StopSignal | None = None) -> Iterator[Rollout]:
        """Sample every requested report from the policy as it is now; yield each as it ends. All ranks must call this.

        Args:
            stop: asked every second; the reports under way are given up.

        Raises:
            StopRequested: `stop` was set.
            ValueError: no report of a study, or one that cannot be trained on; names the study.
        """
        asked, model = list(requests), self.adapter.publish()
        with ThreadPool(self.config.concurrency) as pool:  # daemons: a program that stops does not wait for them
            bodies = pool.map(partial(self._body, model), asked)
            jobs = [
                (request, sample, body)
                for request, body in zip(asked, bodies, strict=True)
                for sample in range(len(request.seeds))
            ]
            reports = pool.imap_unordered(lambda job: self._report(*job), jobs)
            yield from _as_they_end(reports, len(jobs), stop)

    def _options(self) -> dict[str, Any]:
        """The part of a request that all share. What a server would fill in from the model's generation_config.json is
        said: those published with Qwen-VL sample from a few tokens, with a penalty for repetitions."""
        sampling = self.sampling
        return {
            "max_completion_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [self.processor.eos_id],
            "logit_bias": {str(token): NEVER for token, never in enumerate(self.suppressed) if never},
            "logprobs": True,
            "return_token_ids": True,
        }

    def _body(self, model: str, request: Request) -> dict[str, Any]:
        study = self.studies[request.prompt.study_id]
        images, context = read_inputs(study)
        messages = served_messages(self.processor, study.id, images, context)
        for message in messages:
            if not isinstance(message["content"], str):
                message["content"] = [_with_data_uri(part) for part in message["content"]]
        return {"model": model, "messages": messages, **self.options}

    def _report(self, request: Request, sample: int, body: Mapping[str, Any]) -> Rollout:
        study = self.studies[request.prompt.study_id]
        private = f"{study.indication}\n{study.comparison}"
        try:
            reply = self.endpoint.post("/chat/completions", {**body, "seed": request.seeds[sample]}, private=private)
            return self._read(request.prompt, sample, reply)
        except TroubleError as trouble:
            advice = "rerun the command when the server is well; the run goes on from its last checkpoint"
            what = f"no report from {self.config.url}: {trouble}"
            raise ValueError(f"study {study.id}: {what}; {advice}") from None
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            what = f"expected a chat completion from {self.config.url}, got a reply without {error}"
            raise ValueError(f"study {study.id}: {what}; see docs/distributed.md for the servers") from None

    def _read(self, prompt: Prompt, sample: int, reply: Mapping[str, Any]) -> Rollout:
        choice, eos_id, limit = reply["choices"][0], self.processor.eos_id, self.sampling.max_new_tokens
        self._check_prompt(prompt, reply)
        if (reason := choice["finish_reason"]) not in ("stop", "length"):
            raise ValueError(f"study {prompt.study_id}: expected the finish reason stop or length, got {reason!r}")
        ids, logps = self._tokens(choice)
        if self.needs_logps and any(map(math.isnan, logps)):
            advice = "start it with log-probabilities and token ids, or set rl.sampler_correction off"
            raise ValueError(f"study {prompt.study_id}: the server gives no log-probabilities; {advice}")
        if reason == "stop" and ids[-1:] != [eos_id]:
            ids, logps = [*ids, eos_id], [*logps, math.nan]
        ids, logps = ids[:limit], logps[:limit]
        self._check_tokens(prompt.study_id, ids)
        tokens, behaviour = torch.tensor(ids), torch.tensor(logps, dtype=torch.float32)
        return Rollout(prompt.study_id, sample, tokens, behaviour, truncated=ids[-1] != eos_id)

    def _check_prompt(self, prompt: Prompt, reply: Mapping[str, Any]) -> None:
        """Refuse a reply to other tokens than the policy is trained with, as far as the server tells them."""
        image, size = self.processor.image_id, len(self.suppressed)

        def texts(ids: Sequence[int]) -> list[int]:
            return [i for i in ids if i != image and i < size]  # SGLang writes images as numbers beyond the vocabulary

        read = reply.get("prompt_token_ids") or reply["choices"][0].get("prompt_token_ids")
        count = (reply.get("usage") or {}).get("prompt_tokens") or (read and len(read))
        if count not in (None, prompt.num_tokens):
            what = f"expected a prompt of {prompt.num_tokens} tokens, the server read {count}"
        elif read and texts(read) != texts(prompt.input_ids.tolist()):
            what = "the server read other tokens as the prompt"
        else:
            return
        advice = "serve sft/model of this run with its own chat template and image limits (docs/distributed.md)"
        raise ValueError(f"study {prompt.study_id}: {what}; {advice}")

    def _tokens(self, choice: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        """Token ids of a report and their log-probabilities, NaN where the server gives none."""
        ids, given = choice.get("token_ids"), (choice.get("logprobs") or {}).get("content") or []
        if ids is None and given and all(named := [TOKEN_ID.fullmatch(entry["token"]) for entry in given]):
            ids = [int(match[1]) for match in named if match]
        if ids is None:
            self.say("warning: the server gives no token ids; its text is encoded again, maybe as other tokens")
            ids, given = self.processor.encode_report(choice["message"]["content"] or "").tolist()[:-1], []
        found = [entry["logprob"] for entry in given] if len(given) == len(ids) else [None] * len(ids)
        return list(ids), [value if value is not None and UNKNOWN < value <= 0 else math.nan for value in found]

    def _check_tokens(self, study_id: str, ids: Sequence[int]) -> None:
        """Refuse a report that the policy's own distribution cannot have given: its probability would be 0."""
        last, eos_id = len(ids) - 1, self.processor.eos_id
        wrong = [i for n, i in enumerate(ids) if not self._possible(i) or (i == eos_id and n < last)]
        if wrong or not ids:
            got = f"the token {wrong[0]}, which no report may hold" if wrong else "no token"
            advice = "the server must honour logit_bias and stop_token_ids, and run this model's tokenizer"
            raise ValueError(f"study {study_id}: expected tokens that sampling allows, got {got}; {advice}")

    def _possible(self, token: int) -> bool:
        return 0 <= token < len(self.suppressed) and not self.suppressed[token]


def _as_they_end(reports: "IMapIterator[Rollout]", count: int, stop: StopSignal | None) -> Iterator[Rollout]:
    while count:
        if stop is not None and stop.requested:
            raise StopRequested(f"stopped on request with {count} reports unfinished")
        try:
            report = reports.next(timeout=1.0)
        except StillWaiting:
            continue
        count -= 1
        yield report


def _with_data_uri(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a message as the protocol sends it."""
    return part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": as_data_uri(part["image"])}}
