"""Minutes a newcomer waits: python benchmarks/demo.py [--script multirep_kd] [--preset smoke] [--method rnnt]

Runs a script in an empty folder, so that the world and its teacher are built too; prints each method's RESULT and the
whole time.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", default="interaed_kd")
    parser.add_argument("--preset", default="demo", choices=["smoke", "demo"])
    parser.add_argument("--method", nargs="+", default=[], help="rows (absent: the preset's)")
    arguments = parser.parse_args()
    script = Path(__file__).parents[1] / f"{arguments.script}.py"
    command = [sys.executable, str(script), "--preset", arguments.preset]
    command += ["--method", *arguments.method] if arguments.method else []
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = perf_counter() - started
    print(*(line for line in done.stdout.splitlines() if line.startswith("RESULT ")), sep="\n")
    print(f"{seconds:.0f} s in all")
