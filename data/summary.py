"""What a dataset holds, what was left out of it and why: to be printed, and written with every id."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.integrity import Entry, IntegrityConfig, Problem
from data.readers.records import Unread
from data.splits import SPLITS

SHOWN = 5  # ids of each kind that are printed


@dataclass(frozen=True)
class Summary:
    """Counts of what was written, and the studies behind every rule."""

    read: int  # studies seen, those that could not be read included
    splits: Mapping[str, int]  # studies written
    patients: int  # of the studies written
    images: int  # of the studies written
    missing: Mapping[str, int]  # sections that written studies lack
    dropped: Mapping[str, list[str]]  # reason -> "id: detail"
    reported: Mapping[str, list[str]]  # rule -> "id: detail", of studies that were kept nevertheless
    fatal: Mapping[str, list[str]]

    @property
    def studies(self) -> int:
        return sum(self.splits.values())

    @classmethod
    def of(
        cls,
        entries: Sequence[Entry],
        problems: Sequence[Problem],
        dropped: Mapping[int, str],
        unread: Sequence[Unread],
        config: IntegrityConfig,
    ) -> "Summary":
        """`dropped`: place -> rule."""
        kept = [entry for place, entry in enumerate(entries) if place not in dropped]
        gone, reported, fatal = {}, {}, {}
        for item in unread:
            gone.setdefault(item.reason, []).append(_line(item.id, item.detail))
        for problem in problems:
            line = _line(problem.id, problem.detail)
            if config.action(problem.rule) == "fatal":
                fatal.setdefault(problem.rule, []).append(line)
            elif dropped.get(problem.place) == problem.rule:
                gone.setdefault(problem.rule, []).append(line)
            elif problem.place not in dropped:
                reported.setdefault(problem.rule, []).append(line)
        counts = Counter(entry.split for entry in kept)
        return cls(
            read=len(entries) + len(unread),
            splits={split: counts[split] for split in SPLITS},
            patients=len({entry.patient_id for entry in kept}),
            images=sum(entry.num_images for entry in kept),
            missing={rule: len(reported.get(rule, [])) for rule in ("no_findings", "no_impression")},
            dropped=gone,
            reported=reported,
            fatal=fatal,
        )

    def refuse_unusable(self) -> None:
        """Raise ValueError if a fatal rule is broken, or if nothing is left."""
        if self.fatal:
            listed = "\n".join(_listed(self.fatal))
            raise ValueError(
                f"nothing was written, since these rules are fatal:\n{listed}\n"
                "correct the files, or choose keep or drop, such as: --patient-in-two-splits drop"
            )
        if not self.studies:
            raise ValueError(f"nothing was written, since no study is left:\n{self.text()}")

    def text(self) -> str:
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        gone = sum(map(len, self.dropped.values()))
        lines = [
            f"studies {self.studies:,} of {self.read:,} ({splits})",
            f"patients {self.patients:,}",
            f"images {self.images:,}",
            f"sections missing: Findings {self.missing['no_findings']:,}, Impression {self.missing['no_impression']:,}",
            f"dropped {gone:,}",
            *_listed(self.dropped),
        ]
        if self.reported:
            lines += ["kept, but look at", *_listed(self.reported)]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """For JSON, with every id."""
        return {
            "read": self.read, "studies": self.studies, "splits": self.splits, "patients": self.patients,
            "images": self.images, "missing": self.missing, "dropped": self.dropped, "reported": self.reported,
        }  # fmt: skip


def _line(study_id: str, detail: str) -> str:
    return f"{study_id}: {detail}" if detail else study_id


def _listed(groups: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for name, found in sorted(groups.items(), key=lambda group: -len(group[1])):
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        lines.append(f"  {name.replace('_', ' ')}: {len(found):,} ({'; '.join(found[:SHOWN])}{more})")
    return lines
