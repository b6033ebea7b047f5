"""Programs of benchmarks/ that no test runs: what they import is there, and so is what they measure."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"
CHECK = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
import breakdown
lost = [attribute for owner, attribute, _ in breakdown.PARTS if not hasattr(owner, attribute)]
assert not lost, f"breakdown.PARTS names {lost}"
"""


def test_every_benchmark_program_can_be_imported():
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("gpu_"))
    assert len(names) > 15
    command = [sys.executable, "-c", CHECK, str(FOLDER), *names]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
