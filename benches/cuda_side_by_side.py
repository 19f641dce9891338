#!/usr/bin/env python3
"""Checks lstm-cuda on a machine with a GPU against the CPU, then compares its speed with that of PyTorch with cuDNN.

    python3 cuda_side_by_side.py PATH/TO/cuda [--conformance PATH --tests DIR] [--only PARTS] [--logs DIR]

PATH/TO/cuda is the program of benches/src/bin/cuda.rs, built elsewhere with
`cargo build --release -p lstm-benches --features cuda --bin cuda`. It needs the driver, and either NVRTC or prebuilt kernels,
which `cuda --prebuild DIR` makes and LSTM_CUDA_KERNELS=DIR selects. The NVRTC of PyTorch's wheels is found automatically.

Rounds of both alternate. Compared is float32 with TF32 off; times of other precisions are printed beside it. The line
`lstm-cuda tf32` compares TF32 mode, which is not exact, with PyTorch with TF32 on. All times include the product with the input.

With --conformance, the whole conformance suite then runs on the device, and a part of it under compute-sanitizer's memcheck and
racecheck. A tool that does not support the device counts as a failure. PATH is the program that `cargo test --release
-p lstm-tests --features cuda --test conformance --no-run` names, DIR a copy of `tests/` with its snapshots and data.

A program that hangs is killed and reported, and the rest continues. The output of programs goes to files in --logs as they run.
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

# Trials to run under the sanitizers, which slow kernels down a hundredfold: every execution path in exact mode, few sizes.
SANITIZED = ["cuda::kernel-per-step::rows-4", "cuda::persistent::rows-4", "cuda::cells::"]


def environment():
    """Our environment, plus the paths of NVRTC in Python's packages and in a toolkit."""
    found = [path for folder in sys.path for path in glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libnvrtc.so.*"))]
    folders = sorted({os.path.dirname(path) for path in found}) + glob.glob("/usr/local/cuda/lib64")
    # The existing value is kept, since the driver may be found through it.
    paths = [path for path in (*folders, os.environ.get("LD_LIBRARY_PATH")) if path]
    return dict(os.environ, LD_LIBRARY_PATH=":".join(paths)) if paths else dict(os.environ)


def sanitizer():
    """The path of compute-sanitizer, or None."""
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin"]
    return shutil.which("compute-sanitizer", path=":".join(folders))


def suite(name, command, args, seconds):
    """Runs the conformance suite or a part of it. Returns whether it failed."""
    tests, label = os.path.abspath(args.tests), "".join(c if c.isalnum() else "-" for c in name)
    log = os.path.join(args.logs, f"{label}.log")
    variables = dict(environment(), CARGO_MANIFEST_DIR=tests, INSTA_WORKSPACE_ROOT=tests, INSTA_UPDATE="no", LSTM_BACKENDS="cuda")
    # One line per finished trial, written at once. LSTM_RUN_INEXACT runs the trials even if the device is not exact.
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
    # A sanitizer that does not support the device says so, and may run the program without checks.
    unsupported = any("not supported" in line or "Unable to" in line for line in lines)
    # The suite prints this if the device is not exact.
    complete = not any("not run: " in line for line in lines)
    passed = code == 0 and ran and complete and not unsupported
    print(f"{name}: {'passed' if passed else f'FAILED ({code})'} in {time.perf_counter() - start:.0f} s; {log}", flush=True)
    notable = [line for line in lines if not line.endswith("... ok")]
    print("\n".join(f"    {line}" for line in (lines[-1:] if passed else notable[:60] + notable[-2:])), flush=True)
    return not passed


def sanitizers(args):
    """Runs parts of the suite under the sanitizers. Returns the number of failed runs."""
    found, failed = sanitizer(), 0
    for tool in ("memcheck", "racecheck"):
        if not found:
            print(f"compute-sanitizer {tool}: not run: it is not on the PATH", flush=True)
            failed += 1
            continue
        for part in SANITIZED:
            # API errors are not reported, since the backend makes a call that fails on purpose: it asks whether CUDA knows an address.
            prefix = [found, "--tool", tool, "--error-exitcode", "9", "--show-backtrace", "device"]
            prefix += ["--report-api-errors", "no"] * (tool == "memcheck")
            command = [*prefix, args.conformance, "--test-threads", "1", part]
            failed += suite(f"compute-sanitizer {tool}, {part}", command, args, args.seconds)
    return failed


class Program:
    """The program of benches/src/bin/cuda.rs, which answers each line with one line. It is restarted after a failure."""

    def __init__(self, path, seconds, log):
        self.command, self.seconds, self.log, self.child = [path, "--serve"], seconds, open(log, "w"), None

    def ask(self, *words):
        """Sends a request and returns the answer. If it begins with `not run: `, the rest is the reason."""
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
            return f"not run: the program ended (exit code {self.end()}): see {self.log.name}"
        # After an error of the device, all later calls of the same process fail.
        if answer.startswith("not run: ") and "another path" not in answer:
            self.end()
        return answer

    def line(self):
        """Reads the next line."""
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
        """Ends the program, after a second by force. Returns its exit code."""
        child, self.child = self.child, None
        try:
            return child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def times(self, words, shape, repeats):
        """Requests a time. Returns microseconds and an empty string, or None and the reason."""
        answer = self.ask(words, *shape, repeats)
        try:
            return float(answer), ""
        except ValueError:
            return None, answer


def path_suffixes(shape):
    """The suffixes for execution paths that a shape may use. Larger layers do not fit in clusters."""
    return ("clusters", "persistent", "steps") if shape[0] <= 512 else ("persistent", "steps")


def bits(program):
    """Checks all shapes on all paths. Returns how many differ from the CPU."""
    different = 0
    for shape in SHAPES:
        for suffix in ("", *path_suffixes(shape)):
            answer = program.ask(f"check-{suffix}" if suffix else "check", *shape, 0)
            # It is not a difference if the layer can't use the path on this device.
            different += answer != "identical" and not (suffix and answer.startswith("not run: the layer uses another path"))
            path = f", {suffix}" if suffix else f" by {program.ask('paths', *shape, 0)}"
            print(f"check {shape}{path}: {answer}", flush=True)
        print(f"lstm-cuda tf32 {shape}: {program.ask('check-tf32', *shape, 0)}", flush=True)
    return different


def peer(torch, shape, train, dtype, tf32, repeats):
    """The median time of one pass of torch.nn.LSTM, in microseconds."""
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
    """Measures both in alternation. Returns both medians and the spread, or None, None and the reason."""
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
    """Compares one pass of one shape. Returns whether it could not be measured."""
    (hidden, batch, steps), words = shape, "train" if train else "forward"
    label = f"{shape} {'forward+backward' if train else 'forward'}"
    a, b, note = rounds(program, torch, words, shape, train, False, args)
    if a is None:
        print(f"{label}: {note}", flush=True)
    else:
        # The peak of an H100 or H200 is 66.9 TFLOP/s in fp32. Forward takes 16 H^2 FLOP per step and sequence, with the input.
        roofline = 16 * hidden**2 * batch * steps * (3 if train else 1) / 66.9e12 * 1e6
        others = [("tf32", torch.float32, True), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, False)]
        beside = "  ".join(f"{name} {peer(torch, shape, train, dtype, tf32, args.repeats):.0f}" for name, dtype, tf32 in others)
        print(
            f"{label}: ours {a:.0f} us, cuDNN fp32 {b:.0f} us, ratio {b / a:.2f}, time / roofline {a / roofline:.1f}"
            f"  ({note}; labelled, not compared: {beside})",
            flush=True,
        )
    # Shows whether the path that is chosen by default is the fastest.
    paths = [(suffix, *program.times(f"{words}-{suffix}", shape, args.repeats)) for suffix in path_suffixes(shape)]
    print("    by path: " + ", ".join(f"{suffix} {why or f'{us:.0f} us'}" for suffix, us, why in paths), flush=True)
    c, d, note = rounds(program, torch, f"{words}-tf32", shape, train, True, args)
    if c is None:
        print(f"    lstm-cuda tf32: {note}", flush=True)
    else:
        gain = f"; ours exact / ours tf32 {a / c:.2f}" if a else ""
        print(f"    lstm-cuda tf32 (not exact) {c:.0f} us, cuDNN tf32 {d:.0f} us, ratio {d / c:.2f}{gain}  ({note})", flush=True)
    return a is None


def times(program, args):
    """Compares all shapes. Returns how many passes of the exact mode could not be measured. Needs PyTorch with a GPU."""
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
    parser.add_argument("--seconds", type=int, default=300, help="time limit for a request and for a run of the suite")
    parser.add_argument("--logs", metavar="DIR", default="cuda-logs")
    args = parser.parse_args()
    parts = args.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only takes some of {','.join(PARTS)}, not {args.only}")
    for path in (args.program, *([args.conformance, os.path.join(args.tests, "snapshots")] if args.conformance else [])):
        if not os.path.exists(path):
            parser.error(f"{path} does not exist")
    os.makedirs(args.logs, exist_ok=True)
    program = Program(args.program, args.seconds, os.path.join(args.logs, "program.log"))
    # The fastest and most informative parts come first.
    failed = bits(program) if "bits" in parts else 0
    failed += times(program, args) if "times" in parts else 0
    if args.conformance and "conformance" in parts:
        failed += suite("conformance", [args.conformance, "--test-threads", "1"], args, args.seconds)
    if args.conformance and "sanitizers" in parts:
        failed += sanitizers(args)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
