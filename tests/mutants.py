"""Break the code on purpose, one small change at a time, and see that the tests notice: `make mutants`, or
`make mutants ARGS='capo/trainer.py sections'` for those whose file or tests have such a name. They are in mutants.txt.

The tests run on a copy of the checkout, each time in a copy of this process, which has imported the large libraries.
"""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT, TABLE = Path(__file__).parents[1], Path(__file__).with_suffix(".txt")
LIBRARIES = (
    "hypothesis",
    "torch._dynamo",
    "torch.nn.attention.flex_attention",
    "torch.distributed.fsdp",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)
LIMIT_S = 120  # a mutant may run forever


class Mutant(NamedTuple):
    """One change, and the tests of which one must fail."""

    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: {self.old!r} -> {self.new!r}"

    @property
    def error(self) -> str | None:
        """What is wrong with this row, or None."""
        file = ROOT / self.path
        count = file.read_text(encoding="utf-8").count(self.old) if file.exists() else 0
        if count != 1:
            return f"{self.path}: expected {self.old!r} once, found it {count} times; correct tests/mutants.txt"
        for test in self.tests:
            file, _, name = test.partition("::")
            if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8") + "def (":
                return f"{self.path}, {self.old!r}: there is no {test}; correct tests/mutants.txt"
        return None


def mutants() -> Iterator[Mutant]:
    """Those of mutants.txt."""
    path, tests, text = "", (), {"-": [], "+": []}
    for line in [*TABLE.read_text(encoding="utf-8").splitlines(), ""]:
        mark = line[:1]
        if text["+"] and mark != "+":
            yield Mutant(path, "\n".join(text["-"]), "\n".join(text["+"]), tests)
            text = {"-": [], "+": []}
        if mark in text:
            text[mark].append(line[2:])
        elif line and mark != "#":
            path, _, names = line.partition(": ")
            tests = tuple(_test(name) for name in names.split())


def _test(name: str) -> str:
    """`capo_kl::test_x` -> `tests/test_capo_kl.py::test_x`."""
    file, mark, test = name.partition("::")
    return f"tests/test_{file}.py{mark}{test}"


def main(words: Sequence[str]) -> None:
    chosen = [m for m in mutants() if not words or any(word in text for word in words for text in (m.path, *m.tests))]
    if not chosen:
        sys.exit(f"no mutant of a file or test named {' or '.join(words)}")
    if errors := [mutant.error for mutant in chosen if mutant.error]:
        sys.exit("\n".join(errors))
    for library in LIBRARIES:
        importlib.import_module(library)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_checkout(Path(folder) / "radflow")
        print("the tests without any mutant", flush=True)
        if failed := first_failure(tree, sorted({test for mutant in chosen for test in mutant.tests})):
            sys.exit(f"{failed} without any mutant; make the tests pass first")
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            failed = noticed(tree, mutant)
            survivors += [] if failed else [mutant]
            seconds = f"{time.monotonic() - began:.0f} s"
            print(f"{number}/{len(chosen)} {mutant}: {failed or 'SURVIVED'} ({seconds})", flush=True)
    for mutant in survivors:
        print(f"survived: {mutant}")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed")
    sys.exit(bool(survivors))


def copy_of_the_checkout(tree: Path) -> Path:
    left_out = shutil.ignore_patterns(".venv*", ".git", "runs", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, tree, ignore=left_out)
    (tree / "build" / "imports").mkdir(parents=True)
    (tree / "build" / "imports" / "radflow").symlink_to(tree)
    return tree


def noticed(tree: Path, mutant: Mutant) -> str | None:
    """The test that fails with this change, which is undone afterwards."""
    file = tree / mutant.path
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return first_failure(tree, mutant.tests)
    finally:
        file.write_text(text, encoding="utf-8")  # of the copy: the checkout may be edited while this runs


def first_failure(tree: Path, tests: Sequence[str]) -> str | None:
    """What fails first of these tests on that tree, or None.

    Raises:
        RuntimeError: the tests could not be run.
    """
    output = tree / "build" / "output.txt"
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tree, tests, output))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        return f"still running after {LIMIT_S} s"
    lines = output.read_text(encoding="utf-8").splitlines()
    if process.exitcode not in (0, 1):
        raise RuntimeError("\n".join([f"exit status {process.exitcode} of pytest {' '.join(tests)}", *lines[-40:]]))
    return next((line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))), None)


def _run_tests(tree: Path, tests: Sequence[str], output: Path) -> None:
    with output.open("w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(tree)
    paths = [str(tree / "build" / "imports"), str(tree)]
    sys.path[:] = [*paths, *(path for path in sys.path if path != str(ROOT / "tests"))]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    # As long as nothing writes bytecode, that of an unchanged file is never taken for that of a mutant.
    sys.dont_write_bytecode = True
    pytest = importlib.import_module("pytest")
    code = pytest.main(["-q", "-x", "-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


if __name__ == "__main__":
    main(sys.argv[1:])
