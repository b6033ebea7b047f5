"""The words after `train.py` and `evaluate.py`: a command, found by name and imported when it runs, or a config."""

import difflib
import errno
import importlib
import inspect
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from capo.stopping import StopRequested
from radflow.data.readers.tables import escape_control, escape_lines
from radflow.rewards.faults import RewardError

CONFIGS = Path(__file__).parent.parent / "configs"
DEFAULT_CONFIG = CONFIGS / "demo.yaml"
# What to do about errors of the system; of any other kind the message itself has to do.
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable for this user, or choose another path"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "correct the path"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    errno.EIO: "check the disk",
}
LOADS, LOOKS, LOOK_S = Path("/proc/loadavg"), 5, 0.01
_NAMES = ("annotate", "compare", "dashboard", "export", "plan", "watch")
TRAIN_COMMANDS = {name: f"pipeline.commands:{name}" for name in _NAMES}


@dataclass(frozen=True)
class Source:
    """The YAML file, by default the demo's; what is laid over it; the sections whose options are asked for, None: no
    help is."""

    config: Path = DEFAULT_CONFIG
    preset: Literal["paper"] | None = None
    help: Annotated[tuple[str, ...] | None, tyro.conf.arg(aliases=("-h",))] = None


def run_program(program: str, words: Sequence[str], commands: Mapping[str, str], usage: str | None) -> None:
    """`run_command` for a program that does nothing without a command."""
    if not run_command(program, words, commands, usage):
        sys.exit(f"error: expected a command among {', '.join(commands)}; see {program} --help")


def run_command(program: str, words: Sequence[str], commands: Mapping[str, str], usage: str | None) -> bool:
    """Run the command that the first word names, or print help; False if the words are neither.

    What a user can cause ends the program with one line; a pipe that closes early, as that of `head`, with none.

    Args:
        commands: `module:function` within radflow by name. The options are the function's parameters; a function of
            `words` parses them itself.
        usage: the help of the program.
    """
    with _quiet_when_the_reader_leaves():
        no_command = not words or words[0].startswith("-")
        if no_command and show_help(words, usage):
            return True
        share_cores()
        if not no_command:
            _run_named(program, words, commands)
        return not no_command


def share_cores() -> None:
    """On a machine whose cores are busy, let threads that wait for others sleep instead of spin, which torch's OpenMP
    reads when it is loaded. OMP_WAIT_POLICY decides if it is set.

    Threads that sleep are woken slowly: alone on the machine, a step would take longer.
    """
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    spare = cores - (int(threads) if threads.isdecimal() else cores)
    if "OMP_WAIT_POLICY" not in os.environ and _count_running() > spare:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        print("note: other programs keep this machine busy; OMP_WAIT_POLICY=PASSIVE is set", file=sys.stderr)


def _count_running() -> int:
    """Threads of other programs that run now, the median of a few looks; 0 if the system does not tell."""
    counts = []
    with suppress(OSError, ValueError, IndexError):
        for _ in range(LOOKS):
            counts.append(int(LOADS.read_text(encoding="ascii").split()[3].split("/")[0]) - 1)
            time.sleep(LOOK_S)
    return int(statistics.median(counts)) if counts else 0


def _run_named(program: str, words: Sequence[str], commands: Mapping[str, str]) -> None:
    name, *rest = words
    if name not in commands:
        sys.exit(f"error: {program} has no command {escape_control(name)}; {suggest(name, commands)}")
    command = _load(commands[name])
    try:
        if "words" in inspect.signature(command).parameters:
            command(rest)
        else:
            tyro.cli(command, args=rest, prog=f"{program} {name}", config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, RewardError) as error:
        sys.exit(f"error: {escape_lines(str(error))}")
    except StopRequested as stopped:
        say_how_to_resume(stopped)


def say_how_to_resume(stopped: StopRequested) -> None:
    """Print one line, on the first rank, with the command that started this program."""
    if os.environ.get("RANK", "0") != "0":
        return
    command = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's own command is known on Linux only
        launcher = Path(f"/proc/{os.getppid()}/cmdline")
        command = launcher.read_text().rstrip("\0").split("\0") if launcher.exists() else ["torchrun", "..."]
    print(f"{stopped}; start the same command again to go on: {shlex.join(command)}", flush=True)


def exit_with(error: OSError) -> NoReturn:
    """End the program with one line: the file, what the system says of it, and what to do.

    An error of the system without a file is one of standard output, since whatever writes a file names it.
    """
    if error.errno is None:  # a library's own
        sys.exit(f"error: {escape_control(' '.join(str(error).split()))}")
    where = error.filename2 or error.filename
    if where is None:
        _drop_output()
    advice = f"{ADVICE[error.errno]}, then rerun" if error.errno in ADVICE else "rerun"
    line = f"{where or 'standard output'}: {os.strerror(error.errno)}; {advice} the same command to resume"
    sys.exit(f"error: {escape_control(line)}")


def _drop_output() -> None:
    """Python flushes once more at exit, and would complain there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _quiet_when_the_reader_leaves() -> Iterator[None]:
    """What is printed reaches its reader before this ends; one that has gone ends the program without a word, and any
    other error of the system with a line."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:  # a disk that is full, a folder that may not be written
        exit_with(error)


def say(text: str) -> None:
    """Print lines that may name ids and files."""
    print(escape_lines(text))


def show_help(words: Sequence[str], usage: str | None) -> bool:
    """Print `usage` if `--help` or `-h` is among the words, or the options of the config sections named after it."""
    sections = parse_source(words)[0].help
    if sections:
        _load("pipeline.run_config:show_options")(sections)
    elif sections is not None:
        print(inspect.cleandoc(usage or ""))
    return sections is not None


def suggest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """What a user who wrote `name` may have meant: the nearest of the known names, else all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(names)}"


def parse_source(words: Sequence[str]) -> tuple[Source, list[str]]:
    """The options that name a config file or ask for help, and the other words."""
    return tyro.cli(Source, args=words, prog="train.py", add_help=False, return_unknown_args=True)


def _load(target: str) -> Callable[..., None]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(f"radflow.{module}"), function)
