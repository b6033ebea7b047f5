"""Work on many studies, in parts that the ranks share; each part is written when done, so that a killed run resumes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from capo.journal import Digests, digests_path, find_damage, read_lines, write_sealed
from capo.ranks import Ranks
from capo.stopping import StopRequested
from radflow.data.studies import Study

Row = Mapping[str, object]


def resumable_map(
    folder: Path,
    studies: Sequence[Study],
    size: int,
    work: Callable[[Sequence[Study], str], Sequence[Row]],
    ranks: Ranks,
    *,
    title: str,
    built_on: Mapping[str, str] | None = None,
) -> list[dict[str, object]]:
    """One row per study, in order, on every rank; a part whose file is there is not done again.

    Args:
        folder: of the part files; all ranks see it.
        size: studies per part. Parts are the same whatever the number of ranks is, and so is what is decoded together.
        work: the rows of one part, each with the study's id; its second argument names the part.
        built_on: name -> hash of what the rows depend on, such as a model; parts of another one are refused.

    Raises:
        StopRequested: some rank was stopped; the parts that are complete stay.
        ValueError: a part file is missing, damaged, of another model, or does not hold its studies.
    """
    parts = [studies[i : i + size] for i in range(0, len(studies), size)]
    paths = [folder / f"part_{number:05d}.jsonl" for number in range(len(parts))]
    own, finished = range(ranks.rank, len(parts), ranks.size), True
    try:
        for number in tqdm(own, title, unit="part", disable=None if ranks.is_main else True):
            if not paths[number].exists():
                write_sealed(paths[number], work(parts[number], paths[number].stem), built_on)
    except StopRequested:
        finished = False
    ranks.all_gather_or_stop(finished or None)
    if ranks.is_main and (bare := sum(path.exists() and not digests_path(path).exists() for path in paths)):
        print(f"warning: {folder}: {bare} parts of an older version have no digests; read as they are", flush=True)
    return [row for path, part in zip(paths, parts, strict=True) for row in _read(path, part, built_on or {})]


def _read(path: Path, studies: Sequence[Study], built_on: Mapping[str, str]) -> list[dict[str, object]]:
    if not path.exists():
        raise ValueError(f"{path}: expected a part file of {len(studies)} studies, found none; rerun the command")
    advice = "remove the file and rerun the command"
    if recorded := Digests.read(path):
        if damage := find_damage(recorded.base, recorded.files):
            raise ValueError(f"{path} {damage[1]}; {advice}")
        if others := [name for name, now in built_on.items() if recorded.built_on.get(name, now) != now]:
            made = f"made with another {others[0]} than the one that is there now"
            raise ValueError(f"{path}: {made}; remove the folder {path.parent} and rerun the command")
    rows = read_lines(path)
    if [row.get("id") for row in rows] != [study.id for study in studies]:
        wanted, got = f"the studies {studies[0].id} to {studies[-1].id}, one per line", f"{len(rows)} lines of others"
        raise ValueError(f"{path}: expected {wanted}, got {got}; {advice}")
    return rows
