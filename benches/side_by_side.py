#!/usr/bin/env python3
"""Times lstm-cpu and peers.py's peers on the same cases, turn by turn in one run, and prints the ratios.

  side_by_side.py [--threads 1,2] [--rounds 3] [--seconds 1] [--only SUBSTR]      needs what peers.py needs, and cargo

A ratio is the peer's median time over ours: above 1, we are faster. In brackets the worst and best pairing of rounds.
"""
import argparse, collections, json, pathlib, statistics, subprocess, sys
ap = argparse.ArgumentParser()
ap.add_argument("--threads", default="1,2")
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--seconds", default="1")
ap.add_argument("--only", default="")
a = ap.parse_args()
here = pathlib.Path(__file__).parent
subprocess.run(["cargo", "build", "--quiet", "--release", "--package", "lstm-benches"], cwd=here, check=True)
ours = ["cargo", "run", "--quiet", "--release", "--package", "lstm-benches", "--"]
times = collections.defaultdict(list)
cases = [c for c in json.load(open(here / "cases.json")) if a.only in c["name"]]
for threads in a.threads.split(","):
    for _ in range(a.rounds):
        for c in cases:
            args = ["--threads", threads, "--seconds", a.seconds, "--only", c["name"]]
            for command in (ours, [sys.executable, "peers.py"]):
                out = subprocess.run(command + args, cwd=here, check=True, capture_output=True, text=True).stdout
                for line in map(json.loads, out.splitlines()):
                    times[c["name"], threads, line["peer"]].append(line["median_s"])
print("| case | threads | lstm-cpu, ms | peer: its time over ours (spread) |\n|---|---|---|---|")
for (case, threads, peer), t in times.items():
    mine = times[case, threads, "lstm-cpu"]
    if peer != "lstm-cpu":
        spread = f"{min(t) / max(mine):.2f} to {max(t) / min(mine):.2f}"
        print(f"| {case} | {threads} | {statistics.median(mine) * 1e3:.4g} | {peer}: {statistics.median(t) / statistics.median(mine):.2f} ({spread}) |")
