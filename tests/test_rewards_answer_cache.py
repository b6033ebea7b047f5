"""The judge's file: claims, answers, the ledger; many processes, kills, and files that are something else."""

import multiprocessing
import sqlite3

import pytest

from radflow.rewards.judge.answer_cache import AnswerCache
from radflow.rewards.judge.prompts import CONSISTENCY, CRITICALITY, Answer


@pytest.fixture
def opened(tmp_path):
    """Makes owners of one file."""
    made = []

    def make(**settings):
        made.append(AnswerCache(tmp_path / "c.sqlite", **{"claim_s": 9.0, **settings}))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def spent(tmp_path):
    """Calls and money of all owners together."""
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        row = connection.execute("SELECT calls, money FROM spending").fetchone()
    connection.close()
    return row


def test_one_owner_claims_others_wait_and_a_released_or_lapsed_claim_is_free(opened, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("radflow.rewards.judge.answer_cache.time.time", lambda: now[0])
    first, second = opened(claim_s=20), opened(claim_s=20)
    assert first.claim("k") and not second.claim("k")
    second.release("k")  # not its own: nothing happens
    assert not second.claim("k")
    first.release("k")
    assert second.claim("k") and not first.claim("k")
    now[0] = 1015.0
    second.extend_claims()
    now[0] = 1030.0
    assert not first.claim("k")  # it holds until 1035
    now[0] = 1036.0
    assert first.claim("k") and not second.claim("k")


def test_an_answered_question_cannot_be_claimed_and_its_first_answer_stays(opened):
    first, second = opened(), opened()
    assert first.find(["k"]) == {} and first.claim("k")
    first.store("k", "clear\x00 \n\u202e", prompt="p", model="m")
    second.store("k", "late", prompt="p", model="m")
    first.release("k")
    assert second.find(["j", "k"]) == {"k": "clear\x00 \n\u202e"}
    assert not second.claim("k")


def test_the_key_is_of_prompt_model_and_texts_and_hides_them():
    keys = {
        CRITICALITY.key("m", ["a", "b"]),
        CRITICALITY.key("m", ["ab"]),
        CRITICALITY.key("m", ["a", "", "b"]),
        CRITICALITY.key("n", ["a", "b"]),
        CONSISTENCY.key("m", ["a", "b"]),
    }
    assert len(keys) == 5 and all(len(key) == 64 for key in keys)


def test_the_file_holds_no_report(tmp_path, opened):
    cache = opened()
    key = CRITICALITY.key("m", ["Mrs Example has a nodule"])
    cache.claim(key)
    cache.store(key, '{"answer": "yes"}', prompt="p", model="m")
    assert not any(b"Mrs Example" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_call_is_paid_with_the_most_it_can_cost_and_settled(tmp_path, opened):
    first, second = (opened(max_calls=3, max_money=1.0) for _ in range(2))
    assert first.pay(0.6) and not second.pay(0.5)
    assert spent(tmp_path) == (1, pytest.approx(0.6))
    first.settle(0.6, 0.1)
    assert second.pay(0.5) and second.pay(0.0) and not second.pay(0.0)  # three calls
    assert spent(tmp_path) == (3, pytest.approx(0.6))
    assert opened().pay(99.0)


@pytest.mark.parametrize("kind", ["text", "other tables", "newer"])
def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path, kind):
    path = tmp_path / "c.sqlite"
    if kind == "text":
        path.write_text("not a database, but long enough to have a header of one" * 20)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
            connection.execute(f"PRAGMA user_version = {0 if kind == 'other tables' else 3}")
        connection.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"c\.sqlite: expected a cache of the judge.*choose another judge\.cache"):
        AnswerCache(path, claim_s=9)
    assert path.read_bytes() == before


VERSION_1 = """
CREATE TABLE answers (key TEXT PRIMARY KEY, prompt TEXT NOT NULL, model TEXT NOT NULL,
    yes INTEGER NOT NULL CHECK (yes IN (0, 1)), reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE spending (only INTEGER PRIMARY KEY CHECK (only = 1), calls INTEGER NOT NULL, money REAL NOT NULL);
INSERT INTO answers VALUES ('k', 'criticality-1', 'm', 0, 'a "quoted" reason'), ('l', 'criticality-1', 'm', 1, '');
INSERT INTO spending VALUES (1, 7, 0.5);
PRAGMA user_version = 1;
"""


def test_paid_answers_of_the_version_before_are_kept(tmp_path, opened):
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        connection.executescript(VERSION_1)
    connection.close()
    for cache in (opened(), opened()):  # the second finds it converted
        answers = {key: CRITICALITY.parse(content) for key, content in cache.find(["k", "l"]).items()}
        assert answers == {"k": Answer(False, 'a "quoted" reason'), "l": Answer(True, "")}
    assert spent(tmp_path) == (7, 0.5)


def claim_all(path, ready, out):
    ready.wait()
    cache = AnswerCache(path, claim_s=60, max_calls=50)  # all at once, on a file that is not there yet
    mine = [key for key in map(str, range(100)) if cache.claim(key)]
    paid = sum(cache.pay(0.0) for _ in range(30))
    out.put((mine, paid))


def test_processes_that_open_a_new_file_at_once_divide_claims_and_budget(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, out = context.Barrier(4), context.Queue()
    processes = [context.Process(target=claim_all, args=(tmp_path / "n" / "c", ready, out)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(key for mine, _ in results for key in mine) == sorted(map(str, range(100)))
    assert sum(paid for _, paid in results) == 50
