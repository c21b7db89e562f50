"""Minutes a newcomer waits: python benchmarks/demo.py [--preset smoke]

Runs the README's command in an empty folder, so that the world is built too; prints the whole time and the training's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo", choices=["smoke", "demo"])
    parser.add_argument("--method", default="ctc")
    arguments = parser.parse_args()
    script = Path(__file__).parents[1] / "interaed_kd.py"
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        command = [sys.executable, str(script), "--preset", arguments.preset, "--method", arguments.method]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = perf_counter() - started
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    print(f"{seconds:.0f} s in all, {result['train_seconds']:.0f} s of it training; WER {result['wer']}")
