"""Rollouts by a served engine: the reports, log-probabilities and updates of the local one, and what is refused."""

import dataclasses
import json
import math
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from served_engine import ServedEngine as Server
from small_run import ROOT, SMALL, write_before_rl

from capo.ranks import Ranks
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig
from capo.stopping import StopRequested, StopSignal
from radflow import train
from radflow.models.lora import LoraConfig, adapters, add_lora
from radflow.models.qwen_vl import load
from radflow.pipeline.generation import build_prompt, suppressed_mask
from radflow.pipeline.run import build_run
from radflow.pipeline.run_config import parse_config
from radflow.pipeline.served_rollouts import ServedAdapter, ServedConfig, ServedEngine

LORA, SEEDS = LoraConfig(rank=2), (11, 2**62 + 1, 5)
SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=12)


@pytest.fixture(scope="module")
def base(tiny_dir, processor, studies, states, tmp_path_factory):
    """A model that ends about half of its reports within the limit."""
    policy, prompt = load(tiny_dir), build_prompt(processor, studies[0])
    with torch.no_grad():
        hidden = states(policy, prompt)[0].mean(0)
        policy.output_weight()[processor.eos_id] = 4.5 * hidden / hidden.square().sum()
    folder = tmp_path_factory.mktemp("served") / "base"
    policy.save(folder, processor)
    return folder


@pytest.fixture
def adapted(base):
    policy = load(base)
    add_lora(policy, LORA, seed=3)
    generator = torch.Generator().manual_seed(0)
    for adapter in adapters(policy).values():
        adapter.lora_b.data.normal_(0, 0.02, generator=generator)
    return policy


@pytest.fixture(scope="module")
def asked(studies):
    """Two studies; the second one has images that the model scales."""
    odd = np.random.default_rng(0).integers(0, 256, (75, 131, 3), dtype=np.uint8)
    return [studies[0], dataclasses.replace(studies[1], images=(odd,), views=())]


@pytest.fixture
def requests(processor, asked):
    return [Request(build_prompt(processor, study), SEEDS) for study in asked]


@pytest.fixture
def ask(adapted, processor, asked, requests, tmp_path):
    """The served reports of the requests, by study and sample; of one engine per server unless `again`."""
    engines = {}

    def served(server, *, again=False, stop=None, requests=requests, **options):
        if server.url not in engines or again:
            engines[server.url] = engine_of(server, **options)
        return by_sample(engines[server.url].rollout(requests, stop=stop))

    def engine_of(server, *, needs_logps=False, studies=asked):
        config = ServedConfig(url=server.url, model="base", server=server.server, retries=1, backoff_s=0.0)
        adapter = ServedAdapter(adapted, LORA, config, base="base", folder=tmp_path / "adapter", ranks=Ranks())
        return ServedEngine(
            adapter,
            processor,
            {study.id: study for study in studies},
            sampling=SAMPLING,
            suppressed=suppressed_mask(adapted, processor),
            needs_logps=needs_logps,
        )

    return served


def by_sample(reports):
    return {(report.study_id, report.sample): report for report in reports}


@pytest.fixture
def local(adapted, processor, requests):
    mask = suppressed_mask(adapted, processor)
    engine = Engine(adapted, sampling=SAMPLING, eos_id=processor.eos_id, suppressed=mask)
    return by_sample(engine.rollout(requests))


def assert_same_reports(found, expected):
    assert found.keys() == expected.keys()
    for key, report in expected.items():
        assert torch.equal(found[key].response_ids, report.response_ids)
        assert found[key].truncated == report.truncated


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_the_served_engine_samples_the_reports_of_the_local_one_and_keeps_one_adapter(
    base, adapted, ask, local, tmp_path, server
):
    assert {report.truncated for report in local.values()} == {True, False}
    with Server(base, server=server) as there:
        found = ask(there, needs_logps=True)
        assert_same_reports(found, local)
        for key, report in local.items():
            torch.testing.assert_close(found[key].behaviour_logps, report.behaviour_logps, atol=1e-5, rtol=0)
        for adapter in adapters(adapted).values():
            adapter.lora_b.data.neg_()
        other = ask(there)
        assert any(not torch.equal(other[key].response_ids, found[key].response_ids) for key in found)
        ask(there)
        ask(there, again=True)  # of a run that was killed
        first, second, third = there.loaded
        assert first != second == third and list(there.policies) == [second]
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == [second]


def named(completion):
    choice = completion["choices"][0]
    for entry, token in zip(choice["logprobs"]["content"], choice.pop("token_ids"), strict=True):
        entry["token"] = f"token_id:{token}"


def without_eos(completion):
    choice = completion["choices"][0]
    if choice["finish_reason"] == "stop":
        choice["token_ids"].pop()
        choice["logprobs"]["content"].pop()


def without_logps(completion):
    completion["choices"][0]["logprobs"] = None


def only_text(completion):
    del completion["choices"][0]["token_ids"], completion["choices"][0]["logprobs"]
    del completion["prompt_token_ids"], completion["usage"]


@pytest.mark.parametrize("change", [named, without_eos, without_logps])
def test_tokens_are_read_as_the_server_gives_them(base, ask, local, change):
    with Server(base, change=change) as server:
        found = ask(server)
    assert_same_reports(found, local)
    for key, report in local.items():
        unknown = found[key].behaviour_logps.isnan()
        assert unknown.sum() == {named: 0, without_eos: not report.truncated, without_logps: len(unknown)}[change]
        torch.testing.assert_close(found[key].behaviour_logps[~unknown], report.behaviour_logps[~unknown])


def test_text_alone_is_encoded_again_and_said_once(base, ask, local, processor, capsys):
    with Server(base, change=only_text) as server:
        found = ask(server)
    for key, report in local.items():
        # nonsense may have more tokens than it was made of, and is cut then
        text = processor.tokenizer.decode(report.response_ids, skip_special_tokens=True)
        again = processor.encode_report(text)[: -1 if report.truncated else None]
        assert torch.equal(found[key].response_ids, again[: SAMPLING.max_new_tokens])
        assert found[key].behaviour_logps.isnan().all()
    assert capsys.readouterr().out.count("no token ids") == 1


def changed(**fields):
    return lambda completion: completion["choices"][0].update(fields)


def prompted(change):
    def apply(completion):
        completion["usage"], ids = None, completion["prompt_token_ids"]
        completion["prompt_token_ids"] = change(ids)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prompted(lambda ids: [ids[0] + 1, *ids[1:]]), "the server read other tokens as the prompt; serve sft/model"),
        (prompted(lambda ids: ids[1:]), r"expected a prompt of \d+ tokens, the server read \d+; serve sft/model"),
        (lambda completion: completion["usage"].update(prompt_tokens=9), "the server read 9; serve sft/model"),
        (changed(finish_reason="abort"), "expected the finish reason stop or length, got 'abort'"),
        (changed(token_ids=[], finish_reason="length"), "got no token; the server must honour logit_bias"),
        (changed(token_ids=[0, 10**6]), "got the token 1000000, which no report may hold"),
        (lambda completion: completion.update(choices=[]), "expected a chat completion from http"),
        (lambda completion: completion.pop("choices"), "a reply without 'choices'; see docs/distributed.md"),
    ],
)
def test_a_reply_that_cannot_be_trained_on_is_refused_with_its_study(base, ask, requests, change, message):
    with Server(base, change=change) as server, pytest.raises(ValueError, match=f"^study .*{message}"):
        ask(server, requests=requests[:1])


def test_tokens_that_no_report_may_hold_are_refused(base, ask, requests, processor):
    image, eos = processor.image_id, processor.eos_id
    for ids, wrong in (([5, image, 6], image), ([5, eos, 6], eos)):
        with (
            Server(base, change=changed(token_ids=ids)) as server,
            pytest.raises(ValueError, match=f"got the token {wrong}, which no report may hold"),
        ):
            ask(server, requests=requests[:1])


def test_a_correction_by_log_probabilities_that_the_server_does_not_give_is_refused(base, ask):
    with (
        Server(base, change=without_logps) as server,
        pytest.raises(ValueError, match=r"gives no log-probabilities; .* or set rl\.sampler_correction off"),
    ):
        ask(server, needs_logps=True)


def test_a_text_that_names_a_control_token_is_not_sent(base, ask, asked):
    named = [dataclasses.replace(asked[0], indication="pain <|im_end|>"), *asked[1:]]
    with Server(base) as server, pytest.raises(ValueError, match=r"control tokens, .* got <\|im_end\|>"):
        ask(server, studies=named)
    assert server.completions == 0


def test_a_stop_ends_the_rollout_and_an_adapter_that_is_not_loaded_the_run(base, ask):
    stop = StopSignal()
    stop.requested = True
    with Server(base) as server, pytest.raises(StopRequested, match="6 reports unfinished"):
        ask(server, stop=stop)
    stop.requested, began = False, time.monotonic()
    threading.Timer(0.5, setattr, (stop, "requested", True)).start()
    with Server(base, change=lambda _: time.sleep(60)) as server, pytest.raises(StopRequested, match="6 reports"):
        ask(server, stop=stop)  # not one report comes
    assert time.monotonic() - began < 30
    with Server(base, dies_after=0) as server, pytest.raises(ValueError, match=r"to load the adapter .*status 500"):
        ask(server)


SERVED = "--rollout.engine served --served.model base --served.retries 1 --served.backoff-s 0"
OPTIONS = "--rl.steps 2 --reward.workers 0 --reward.preset bleu --rl.sampler-correction token --model.training lora"
OPTIONS += " --model.lora.rank 2 --rl.optimizer.lr 1e-3"


@pytest.fixture
def reinforce(base, tmp_path, monkeypatch):
    """Run the RL stage in a folder of this name on the same tiny model; the folder."""
    monkeypatch.chdir(ROOT)

    def run(name, options):
        folder = tmp_path / name
        config = parse_config(
            ["--run-dir", str(folder), *SMALL, "--model.path", str(base), *f"{OPTIONS} {options}".split()]
        )
        built, start = build_run(config, Ranks(), StopSignal(), None)
        if not (folder / "sft").exists():
            names = [study.id for study in built.corpus.train]
            write_before_rl(folder, start, names[:8], {name: name == names[0] for name in names})
        train.reinforce(built)
        return folder

    return run


def test_a_served_run_trains_the_weights_of_the_local_run_though_its_server_dies_on_the_way(reinforce):
    local = reinforce("local", "")
    with Server(local / "sft" / "model", dies_after=20) as server, pytest.raises(ValueError) as error:
        reinforce("served", f"{SERVED} --served.url {server.url}")
    assert "study " in str(error.value) and "goes on from its last checkpoint" in str(error.value)
    with Server(local / "sft" / "model") as server:
        served = reinforce("served", f"{SERVED} --served.url {server.url}")
        assert server.completions == 16  # the second step alone
    rows = [[json.loads(line) for line in (run / "rl/metrics.jsonl").open()] for run in (local, served)]
    for mine, other in zip(*rows, strict=True):
        assert mine["reward"] == other["reward"] and other["sampler_gap_max"] < 1e-4
        assert math.isclose(mine["sampler_weight_mean"], 1, abs_tol=1e-5)
    trained = [load_file(run / "rl" / "adapter" / "adapter_model.safetensors") for run in (local, served)]
    assert any(tensor.any() for name, tensor in trained[0].items() if "lora_B" in name)
    for name, tensor in trained[0].items():
        # The two samplers round differently, and the correction weighs gradients by that: 1 % of an update of 1e-3.
        torch.testing.assert_close(trained[1][name], tensor, atol=1e-5, rtol=0)


def test_what_cannot_be_served_is_refused_when_the_config_is_read(refuse):
    assert "needs served.url and served.model" in refuse(train.main, ["--rollout.engine", "served"])
    words = f"{SERVED} --served.url http://127.0.0.1:1/v1 --model.training full"
    assert "expected model.training lora with rollout.engine served" in refuse(train.main, words.split())
