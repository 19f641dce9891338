#!/usr/bin/env python3
"""One command for a machine with a GPU: bits against the CPU, then times beside PyTorch's with cuDNN.

    python3 cuda_side_by_side.py PATH/TO/cuda [--conformance PATH --tests DIR] [--only PARTS] [--logs DIR]

PATH/TO/cuda is the program of benches/src/bin/cuda.rs, built elsewhere:
`cargo build --release -p lstm-benches --features cuda --bin cuda`. It needs the driver, and NVRTC or kernels built before:
`cuda --prebuild DIR` makes them, LSTM_CUDA_KERNELS=DIR points to them. The NVRTC of PyTorch's wheels is found by itself.

Rounds of both alternate; float32 with TF32 off is the comparison, the other precisions are printed beside it. A line of its own,
`lstm-cuda tf32`, is the fast mode, which is not exact, beside PyTorch with TF32 on. All sizes include the input's product.

With --conformance, afterwards the whole conformance suite runs on the device, and then a part of it under compute-sanitizer's
memcheck and racecheck; a tool that refuses the device did not pass. PATH is what `cargo test --release -p lstm-tests
--features cuda --test conformance --no-run` names, DIR a copy of `tests/` with its snapshots and data.

Whatever hangs is killed and reported, and the rest goes on. What programs print goes to files in --logs while they run.
"""

import argparse
import glob
import os
import select
import shutil
import statistics
import subprocess
import sys
import time

SHAPES = [(128, 1, 1000), (256, 1, 1000), (512, 1, 512), (512, 16, 512), (1024, 16, 256), (1024, 64, 256), (2048, 64, 128)]
PARTS = ["bits", "times", "conformance", "sanitizers"]

# Under the sanitizers, which slow kernels down a hundredfold: the exact mode by every path, and few sizes.
SANITIZED = ["cuda::kernel-per-step::rows-4", "cuda::persistent::rows-4", "cuda::cells::"]


def environment():
    """Ours, in which programs find the NVRTC of Python's packages or of a toolkit."""
    found = [path for folder in sys.path for path in glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libnvrtc.so.*"))]
    folders = sorted({os.path.dirname(path) for path in found}) + glob.glob("/usr/local/cuda/lib64")
    # Before what is there, which may be how the driver is found.
    paths = [path for path in (*folders, os.environ.get("LD_LIBRARY_PATH")) if path]
    return dict(os.environ, LD_LIBRARY_PATH=":".join(paths)) if paths else dict(os.environ)


def sanitizer():
    """Where compute-sanitizer is, if anywhere."""
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin"]
    return shutil.which("compute-sanitizer", path=":".join(folders))


def suite(name, command, args, seconds):
    """One run of the conformance suite, or of a part of it; whether it failed."""
    tests, label = os.path.abspath(args.tests), "".join(c if c.isalnum() else "-" for c in name)
    log = os.path.join(args.logs, f"{label}.log")
    variables = dict(environment(), CARGO_MANIFEST_DIR=tests, INSTA_WORKSPACE_ROOT=tests, INSTA_UPDATE="no", LSTM_BACKENDS="cuda")
    # A line for each trial that has ended, whatever comes later. Where the bits are not exact, all trials say where they aren't.
    results = os.path.abspath(os.path.join(args.logs, f"{label}.jsonl"))
    open(results, "w").close()
    variables.update(LSTM_RESULTS=results, LSTM_RUN_INEXACT="1")
    start = time.perf_counter()
    with open(log, "w") as out:
        try:
            code = subprocess.run(command, env=variables, stdout=out, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = f"killed after {seconds} s"
    with open(log, errors="replace") as text:
        lines = [line for line in text.read().splitlines() if line.strip()]
    ran = any(line.startswith("test result: ok. ") and not line.startswith("test result: ok. 0 ") for line in lines)
    # A sanitizer that can't watch the device says so, and may let the program run.
    refused = any("not supported" in line or "Unable to" in line for line in lines)
    # As does the suite where the bits are not exact.
    whole = not any("not run: " in line for line in lines)
    passed = code == 0 and ran and whole and not refused
    print(f"{name}: {'passed' if passed else f'FAILED ({code})'} in {time.perf_counter() - start:.0f} s; {log}", flush=True)
    telling = [line for line in lines if not line.endswith("... ok")]
    print("\n".join(f"    {line}" for line in (lines[-1:] if passed else telling[:60] + telling[-2:])), flush=True)
    return not passed


def sanitizers(args):
    """How many runs under the sanitizers failed."""
    found, failed = sanitizer(), 0
    for tool in ("memcheck", "racecheck"):
        if not found:
            print(f"compute-sanitizer {tool}: not run: it is not on the PATH", flush=True)
            failed += 1
            continue
        for part in SANITIZED:
            # Whether an address is CUDA's is asked by a call that fails if it isn't: errors of calls are the program's to judge.
            watch = [found, "--tool", tool, "--error-exitcode", "9", "--show-backtrace", "device"]
            watch += ["--report-api-errors", "no"] * (tool == "memcheck")
            command = [*watch, args.conformance, "--test-threads", "1", part]
            failed += suite(f"compute-sanitizer {tool}, {part}", command, args, args.seconds)
    return failed


class Program:
    """benches/src/bin/cuda.rs, which answers each line with one; started anew after it has failed."""

    def __init__(self, path, seconds, log):
        self.command, self.seconds, self.log, self.child = [path, "--serve"], seconds, open(log, "w"), None

    def ask(self, *words):
        """Its answer. One that begins with `not run: ` says why there is none."""
        if self.child is None:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
            self.child, self.read = subprocess.Popen(self.command, env=environment(), **pipes), b""
        try:
            self.child.stdin.write((" ".join(map(str, words)) + "\n").encode())
            self.child.stdin.flush()
            answer = self.line()
        except TimeoutError:
            self.end()
            return f"not run: no answer in {self.seconds} s"
        except (BrokenPipeError, EOFError):
            return f"not run: the program has ended (exit code {self.end()}): see {self.log.name}"
        # After an error of the device all that follow fail, in this process.
        if answer.startswith("not run: ") and "another path" not in answer:
            self.end()
        return answer

    def line(self):
        """The next line."""
        end = time.monotonic() + self.seconds
        while b"\n" not in self.read:
            ready, _, _ = select.select([self.child.stdout], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(self.child.stdout.fileno(), 1 << 16)
            if not more:
                raise EOFError
            self.read += more
        line, _, self.read = self.read.partition(b"\n")
        return line.decode().strip()

    def end(self):
        """Its exit code: its own, if it ends by itself."""
        child, self.child = self.child, None
        try:
            return child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def times(self, words, shape, repeats):
        """Microseconds, or why there are none."""
        answer = self.ask(words, *shape, repeats)
        try:
            return float(answer), ""
        except ValueError:
            return None, answer


def ways(shape):
    """By which paths a shape's steps go where others are left out; clusters don't have larger layers."""
    return ("clusters", "persistent", "steps") if shape[0] <= 512 else ("persistent", "steps")


def bits(program):
    """How many shapes and paths differ from the CPU."""
    different = 0
    for shape in SHAPES:
        for way in ("", *ways(shape)):
            answer = program.ask(f"check-{way}" if way else "check", *shape, 0)
            # That a device does not take the path is no difference.
            different += answer != "identical" and not (way and answer.startswith("not run: it takes another path"))
            path = f", {way}" if way else f" by {program.ask('paths', *shape, 0)}"
            print(f"bits {shape}{path}: {answer}", flush=True)
        print(f"lstm-cuda tf32 {shape}: {program.ask('check-tf32', *shape, 0)}", flush=True)
    return different


def peer(torch, shape, train, dtype, tf32, repeats):
    """Microseconds of one pass of torch.nn.LSTM, the median."""
    hidden, batch, steps = shape
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    lstm = torch.nn.LSTM(hidden, hidden).to("cuda", dtype)
    x = torch.rand(steps, batch, hidden, device="cuda", dtype=dtype).mul_(2).sub_(1).requires_grad_(train)
    lstm.train(train)

    def once():
        if train:
            lstm.zero_grad(set_to_none=True)
            x.grad = None
            y, _ = lstm(x)
            y.backward(y.detach())
        else:
            with torch.no_grad():
                lstm(x)
        torch.cuda.synchronize()

    for _ in range(3):
        once()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def rounds(program, torch, words, shape, train, tf32, args):
    """Times of both in turns; of what could not be run, why."""
    ours, theirs = [], []
    for _ in range(args.rounds):
        time_of_ours, why = program.times(words, shape, args.repeats)
        if time_of_ours is None:
            return None, None, why
        ours.append(time_of_ours)
        theirs.append(peer(torch, shape, train, torch.float32, tf32, args.repeats))
    spread = f"{min(ours):.0f}-{max(ours):.0f} / {min(theirs):.0f}-{max(theirs):.0f}"
    return statistics.median(ours), statistics.median(theirs), f"spread {spread}"


def compare(program, torch, shape, train, args):
    """One shape's pass."""
    (hidden, batch, steps), words = shape, "train" if train else "forward"
    label = f"{shape} {'forward+backward' if train else 'forward'}"
    a, b, said = rounds(program, torch, words, shape, train, False, args)
    if a is None:
        print(f"{label}: {said}", flush=True)
    else:
        # 66.9 TFLOP/s of fp32 on an H100 or H200; forward is 16 H^2 flop a step and sequence, with the input's product.
        floor = 16 * hidden**2 * batch * steps * (3 if train else 1) / 66.9e12 * 1e6
        others = [("tf32", torch.float32, True), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, False)]
        beside = "  ".join(f"{name} {peer(torch, shape, train, dtype, tf32, args.repeats):.0f}" for name, dtype, tf32 in others)
        print(
            f"{label}: ours {a:.0f} us, cuDNN fp32 {b:.0f} us, ratio {b / a:.2f}, to the floor {a / floor:.1f}"
            f"  ({said}; labelled, not compared: {beside})",
            flush=True,
        )
    # Whether the device's own choice is right.
    by = [(way, *program.times(f"{words}-{way}", shape, args.repeats)) for way in ways(shape)]
    print("    by other paths: " + ", ".join(f"{way} {why or f'{us:.0f} us'}" for way, us, why in by), flush=True)
    c, d, said = rounds(program, torch, f"{words}-tf32", shape, train, True, args)
    if c is None:
        print(f"    lstm-cuda tf32: {said}", flush=True)
    else:
        gain = f"; ours exact / ours tf32 {a / c:.2f}" if a else ""
        print(f"    lstm-cuda tf32 (not exact) {c:.0f} us, cuDNN tf32 {d:.0f} us, ratio {d / c:.2f}{gain}  ({said})", flush=True)
    return a is None


def times(program, args):
    """How many passes of the exact mode could not be timed. Without PyTorch nothing can be compared, which is said."""
    try:
        import torch
    except ImportError as error:
        print(f"PyTorch: not run: {error}")
        return 0
    if not torch.cuda.is_available():
        print("PyTorch: not run: it finds no GPU")
        return 0
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    return sum(compare(program, torch, shape, train, args) for shape in SHAPES for train in (False, True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--conformance", metavar="PATH")
    parser.add_argument("--tests", metavar="DIR", default="tests")
    parser.add_argument("--only", metavar="PARTS", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=int, default=300, help="after which a question, or a run of a suite, is given up")
    parser.add_argument("--logs", metavar="DIR", default="cuda-logs")
    args = parser.parse_args()
    parts = args.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only takes some of {','.join(PARTS)}, not {args.only}")
    for path in (args.program, *([args.conformance, os.path.join(args.tests, "snapshots")] if args.conformance else [])):
        if not os.path.exists(path):
            parser.error(f"there is no {path}")
    os.makedirs(args.logs, exist_ok=True)
    program = Program(args.program, args.seconds, os.path.join(args.logs, "program.log"))
    # What costs little and says most comes first.
    failed = bits(program) if "bits" in parts else 0
    failed += times(program, args) if "times" in parts else 0
    if args.conformance and "conformance" in parts:
        failed += suite("conformance", [args.conformance, "--test-threads", "1"], args, args.seconds)
    if args.conformance and "sanitizers" in parts:
        failed += sanitizers(args)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
