"""`evaluate.py generate`: by a model and by an endpoint, shared out, taken up after a stop."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from capo.ranks import Ranks
from capo.sampling import SamplingConfig
from capo.stopping import StopRequested
from radflow import evaluate
from radflow.data.readers.manifest import read_manifest
from radflow.evaluation import generate as generate_reports
from radflow.pipeline import generation
from radflow.pipeline.generation import ReportWriter

ROOT = Path(__file__).parent.parent
TOKENS = 6


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, studies):
    """Five phantoms as files."""
    folder = tmp_path_factory.mktemp("manifest")
    rows = []
    for study in studies[-5:]:
        Image.fromarray(study.images[0]).save(folder / f"{study.id}.png")
        row = {"id": study.id, "patient_id": study.patient_id, "split": study.split, "images": [f"{study.id}.png"]}
        texts = {"findings": study.findings, "impression": study.impression, "indication": "Cough."}
        rows.append(row | texts)
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generate(manifest, out, *options):
    evaluate.main(["generate", "--manifest", str(manifest), "--out", str(out), *map(str, options)])
    return {study_id: entry["report"] for study_id, entry in json.loads(out.read_text()).items()}


def by_model(manifest, tiny_dir, out, *options):
    options = ("--model", tiny_dir, "--max-new-tokens", TOKENS, "--part-size", 2, *options)
    return generate(manifest, out, *options)


@pytest.fixture(scope="module")
def greedy(manifest, tiny_dir, tmp_path_factory):
    """(file, reports) of a greedy run in three parts."""
    out = tmp_path_factory.mktemp("greedy") / "p.json"
    return out, by_model(manifest, tiny_dir, out)


def test_greedy_reports_are_those_of_training_whatever_the_parts(greedy, manifest, policy, processor):
    studies = read_manifest(manifest)
    writer = ReportWriter(policy, processor, SamplingConfig(temperature=0.0, max_new_tokens=TOKENS), slots=5)
    assert greedy[1] == {s.id: report for s, (report, _) in zip(studies, writer.write(studies, title="t"), strict=True)}


def test_parts_of_another_policy_of_a_run_are_no_parts_of_this_file(manifest, tiny_dir, tmp_path, capsys):
    # The folder of a run names its SFT policy until there is one of CAPO.
    (tmp_path / "config.yaml").touch()
    shutil.copytree(tiny_dir, tmp_path / "sft" / "model")
    by_model(manifest, tmp_path, tmp_path / "p.json")
    assert f"model: {tmp_path / 'sft' / 'model'}\ntraining data: unknown" in capsys.readouterr().out
    shutil.copytree(tiny_dir, tmp_path / "rl" / "model")
    with pytest.raises(SystemExit, match="these were made with another model"):
        by_model(manifest, tmp_path, tmp_path / "p.json")


def test_prompts_are_built_by_other_threads_ahead_of_the_engine(manifest, policy, processor, monkeypatch):
    # Decoding one 3056 x 2544 JPEG took 0.15 s, in which a GPU waited.
    threads, build = {}, generation.build_prompt

    def watched(processor, study):
        threads[study.id] = threading.current_thread().name
        return build(processor, study)

    monkeypatch.setattr(generation, "build_prompt", watched)
    sampling, studies = SamplingConfig(temperature=0.0, max_new_tokens=2), read_manifest(manifest)
    loaded = ReportWriter(policy, processor, sampling, slots=1, workers=2).write(studies, title="t")
    assert threads.keys() == {study.id for study in studies} and all("prefetch" in name for name in threads.values())
    assert loaded == ReportWriter(policy, processor, sampling, slots=1, workers=0).write(studies, title="t")
    assert threading.current_thread().name in threads.values()  # workers 0: when the engine asks


def test_sampled_reports_depend_on_the_seed_and_not_on_the_parts(tmp_path, manifest, tiny_dir, greedy):
    options = ("--temperature", 1, "--seed", 3)
    found = by_model(manifest, tiny_dir, tmp_path / "a.json", *options)
    assert by_model(manifest, tiny_dir, tmp_path / "b.json", *options, "--part-size", 8, "--slots", 2) == found
    assert found != greedy[1]


def test_a_second_start_writes_only_what_is_missing(greedy, manifest, tiny_dir, monkeypatch):
    out, found = greedy
    parts = sorted(out.with_name("p.json.parts").glob("part_*.jsonl"))
    assert len(parts) == 3
    parts[1].unlink()
    asked = []
    real = ReportWriter.write

    def noted(self, part, *, title):
        asked.extend(study.id for study in part)
        return real(self, part, title=title)

    monkeypatch.setattr(ReportWriter, "write", noted)
    assert by_model(manifest, tiny_dir, out) == found and asked == list(found)[2:4]
    with pytest.raises(SystemExit, match=r"error: .*made with another sampling, seed"):
        by_model(manifest, tiny_dir, out, "--seed", 1, "--temperature", 1)


def test_two_ranks_write_what_one_does(tmp_path, manifest, tiny_dir, greedy):
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "evaluate.py"]
    options = ["--data", manifest, "--model", tiny_dir, "--max-new-tokens", TOKENS, "--part-size", 2]
    command = [*ranks, "generate", *options, "--out", tmp_path / "two.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "two.json").read_text() == greedy[0].read_text()


@pytest.mark.parametrize("stopped", [False, True])
def test_every_rank_leaves_at_the_end_and_when_it_is_stopped(
    stopped, manifest, tiny_dir, tmp_path, monkeypatch, capsys
):
    left = []
    monkeypatch.setattr(Ranks, "shutdown", lambda ranks: left.append(ranks.rank))
    if stopped:
        monkeypatch.setattr(generate_reports, "resumable_map", Mock(side_effect=StopRequested("stopped")))
        with pytest.raises(FileNotFoundError):  # nothing is written
            by_model(manifest, tiny_dir, tmp_path / "p.json")
        assert "stopped; start the same command again to go on" in capsys.readouterr().out
    else:
        by_model(manifest, tiny_dir, tmp_path / "p.json")
    assert left == [0]


@contextmanager
def serving(answer):
    """A chat endpoint; `answer` is given each request and its number, and returns (status, content[, why it ended])."""
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, content, *ended = answer(requests[-1], len(requests))
            choice = {"message": {"content": content}, "finish_reason": ended[0] if ended else "stop"}
            body = json.dumps({"choices": [choice]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


QUICK = ("--endpoint.backoff-s", 0.01)


def by_endpoint(manifest, out, url, *options):
    return generate(manifest, out, "--endpoint.url", url, "--endpoint.model", "vlm", "--part-size", 2, *options)


def brightness(request):
    """What only a server that got the image can say."""
    (uri,) = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    return f"Findings: {image.convert('L').resize((1, 1)).getpixel((0, 0))} of {max(image.size)}."


def test_an_endpoint_sees_the_images_and_the_context(tmp_path, manifest):
    with serving(lambda request, number: (200, f" {brightness(request)}\n")) as (url, requests):
        found = by_endpoint(
            manifest, tmp_path / "p.json", url, "--endpoint.max-side", 64, "--endpoint.prompt", "Say it."
        )
    assert len(found) == 5 and len(set(found.values())) > 1 and all("of 64" in report for report in found.values())
    assert requests[0]["model"] == "vlm" and requests[0]["temperature"] == 0
    assert requests[0]["messages"][0]["content"][-1] == {"type": "text", "text": "Say it.\nIndication: Cough."}
    assert "response_format" not in requests[0]


def test_faults_are_asked_again_and_finished_parts_are_kept(tmp_path, manifest):
    with serving(lambda request, number: (503 if number in (1, 3) else 200, "Findings: x.")) as (url, requests):
        assert (
            len(by_endpoint(manifest, tmp_path / "p.json", url, "--endpoint.concurrency", 1, *QUICK)) == 5
            and len(requests) == 7
        )
    with serving(lambda request, number: (503 if number > 3 else 200, "Findings: y.")) as (url, requests):
        with pytest.raises(SystemExit, match=r"error: study .*: no report from .*: status 503; rerun"):
            by_endpoint(
                manifest, tmp_path / "q.json", url, "--endpoint.concurrency", 1, "--endpoint.retries", 1, *QUICK
            )
        assert len(list((tmp_path / "q.json.parts").glob("part_*.jsonl"))) == 1
    empty = pytest.raises(SystemExit, match=r"error: study .* answered with an empty report")
    with serving(lambda request, number: (200, "")) as (url, _), empty:
        by_endpoint(manifest, tmp_path / "r.json", url)


def test_thoughts_and_wrapping_are_no_part_of_a_report(tmp_path, manifest):
    said = [
        "<think>Findings: Mass.</think>\n```\nFindings: x.\n```",
        [{"type": "text", "text": "Findings: x.<|im_end|>"}],
    ]
    with serving(lambda request, number: (200, said[number % 2])) as (url, _):
        found = by_endpoint(manifest, tmp_path / "p.json", url)
    assert set(found.values()) == {"Findings: x."}


def test_a_report_that_the_limit_cuts_is_counted_and_thoughts_get_more_room(tmp_path, manifest, capsys):
    def answer(request, number):
        return 200, "<think>still" if request["max_completion_tokens"] < 100 else "Findings: x", "length"

    with serving(answer) as (url, requests):
        found = by_endpoint(manifest, tmp_path / "p.json", url, "--max-new-tokens", 50)
    assert set(found.values()) == {"Findings: x"} and "5 were cut at the token limit" in capsys.readouterr().out
    assert [request["max_completion_tokens"] for request in requests] == [50, *[200] * 5]


def test_a_control_token_in_the_indication_is_broken_up(tmp_path, manifest):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    marked = manifest.with_name("marked.jsonl")
    marked.write_text(
        "".join(json.dumps(r | {"indication": "Cough <|image_pad|>", "comparison": "</s>"}) + "\n" for r in rows)
    )
    with serving(lambda request, number: (200, "Findings: x.")) as (url, requests):
        by_endpoint(marked, tmp_path / "p.json", url)
    text = requests[0]["messages"][0]["content"][-1]["text"]
    assert text.endswith("Indication: Cough < |image_pad|>\nComparison: < /s>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--endpoint.url", "http://example.org/v1", "--endpoint.model", "m"),
            "is not this machine.*endpoint.allow_external",
        ),
        (("--endpoint.url", "http://127.0.0.1:1/v1"), "expected endpoint.url and endpoint.model together"),
        (("--model", "m", "--endpoint.url", "http://127.0.0.1:1/v1", "--endpoint.model", "m"), "and not both"),
        (("--model", "m", "--split", "val"), "expected studies of split val, got none"),
        (("--model", "m", "--temperature", "-1"), "expected temperature of at least 0"),
    ],
)
def test_mistakes_end_with_their_reason(tmp_path, manifest, options, said, refuse):
    words = ["generate", "--manifest", manifest, "--out", tmp_path / "p.json", *options]
    assert re.search(f"[Ee]rror.*{said}", refuse(evaluate.main, words))
