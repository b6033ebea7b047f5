"""A server of a tiny model with the calls of vLLM and SGLang that rollouts need; it decodes with our engine.

It sees messages and images only: the chat template, the tokenizer and the image processor of the served folder make the
prompt of them, as a real server does, and not `ReportProcessor.prompt`.
"""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from PIL import Image

from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig
from radflow.models.adapter_files import CONFIG, load_adapter
from radflow.models.mrope import mrope_positions
from radflow.models.processing import Prompt, ReportProcessor
from radflow.models.qwen_vl import load

# What a server fills in from the generation_config.json that is published with Qwen2.5-VL.
PUBLISHED = {"temperature": 0.1, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05}


class ServedEngine:
    """Serves on 127.0.0.1; a context manager.

    Args:
        directory: the base model.
        server: vllm or sglang, whose calls it has.
        change: of each completion before it is sent.
        dies_after: chat completions; all later requests fail.
    """

    def __init__(
        self,
        directory: Path,
        *,
        server: str = "vllm",
        change: Callable[[dict], None] = lambda completion: None,
        dies_after: int | None = None,
    ) -> None:
        self.directory, self.server, self.change, self.dies_after = directory, server, change, dies_after
        self.processor = ReportProcessor.load(directory)
        self.policies: dict[str, object] = {}  # by the name of the adapter
        self.loaded: list[str] = []
        self.completions, self._lock = 0, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with self._lock:
                    status, reply = self.answer(handler.path, body)
                data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ServedEngine":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict) -> tuple[int, dict | str]:
        if self.dies_after is not None and self.completions >= self.dies_after:
            return 500, {"error": {"message": "EngineDeadError"}}
        root = "/v1" if self.server == "vllm" else ""
        if path == f"{root}/load_lora_adapter":
            return self.load(body["lora_name"], Path(body["lora_path"]))
        if path == f"{root}/unload_lora_adapter":
            known = self.policies.pop(body["lora_name"], None) is not None
            return (200, "Success: removed") if known else (404, {"error": {"message": "no such adapter"}})
        name = body["model"] if self.server == "vllm" else body["model"].removeprefix("base:")
        if path != "/v1/chat/completions" or name not in self.policies:
            return 404, {"error": {"message": f"no model {name} at {path}"}}
        return 200, self.complete(self.policies[name], {**PUBLISHED, **body})

    def load(self, name: str, path: Path) -> tuple[int, dict | str]:
        if name in self.policies:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        if isinstance(json.loads((path / CONFIG).read_text())["target_modules"], str) and self.server == "sglang":
            return 400, {"success": False, "error_message": "Only 'all' can be used as the string for target module"}
        policy = load(self.directory)
        load_adapter(policy, path)
        self.policies[name] = policy
        self.loaded.append(name)
        return 200, f"Success: LoRA adapter '{name}' added." if self.server == "vllm" else {"success": True}

    def complete(self, policy, body: dict) -> dict:
        assert (body["min_p"], body["repetition_penalty"]) == (0.0, 1.0), "no other sampling is served here"
        self.completions += 1
        prompt, size = self.prompt(body["messages"]), policy.vocab_size
        never = torch.tensor([body["logit_bias"].get(str(token), 0) <= -100 for token in range(size)])
        options = {"temperature": body["temperature"], "top_p": body["top_p"], "top_k": max(0, body["top_k"])}
        sampling = SamplingConfig(**options, max_new_tokens=body["max_completion_tokens"], slots=1)
        (eos_id,) = body["stop_token_ids"]
        engine = Engine(policy, sampling=sampling, eos_id=eos_id, suppressed=never, slots=1)
        (report,) = engine.rollout([Request(prompt, (body["seed"],))])
        ids, tokenizer = report.response_ids.tolist(), self.processor.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=True)
        rows = zip(ids, report.behaviour_logps.tolist(), strict=True)
        logps = [{"token": tokenizer.decode(token), "logprob": logp} for token, logp in rows]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if report.truncated else "stop",
            "logprobs": {"content": logps} if body["logprobs"] else None,
            "token_ids": ids if body["return_token_ids"] else None,
        }
        read = {"prompt_token_ids": prompt.input_ids.tolist()}
        completion = {"choices": [choice], "usage": {"prompt_tokens": prompt.num_tokens, "completion_tokens": len(ids)}}
        (completion if self.server == "vllm" else choice).update(read)
        self.change(completion)
        return completion

    def prompt(self, messages: list[dict]) -> Prompt:
        images = []
        for part in messages[-1]["content"]:
            if part["type"] == "image_url":
                head, data = part["image_url"]["url"].split(",")
                assert head == "data:image/png;base64"
                images.append(Image.open(io.BytesIO(base64.b64decode(data))))
                part["type"] = "image"  # as both servers do before the template
        tokenizer, read = self.processor.tokenizer, self.processor.image_processor
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pixels = read(images, return_tensors="pt")
        assert [image.size for image in images] == [
            (int(w) * read.patch_size, int(h) * read.patch_size) for _, h, w in pixels["image_grid_thw"]
        ], "images come at the size of the model"
        counts = iter((pixels["image_grid_thw"].prod(-1) // read.merge_size**2).tolist())
        image_id = self.processor.image_id
        ids = [
            i
            for one in tokenizer(text, add_special_tokens=False)["input_ids"]
            for i in [one] * (next(counts) if one == image_id else 1)
        ]
        positions = mrope_positions(torch.tensor(ids), pixels["image_grid_thw"], image_id, read.merge_size)
        return Prompt("served", torch.tensor(ids), positions, pixels["pixel_values"], pixels["image_grid_thw"])
