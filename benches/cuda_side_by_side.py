#!/usr/bin/env python3
"""One command for a machine with a GPU: bits against the CPU, then times beside PyTorch's with cuDNN.

    python3 cuda_side_by_side.py PATH/TO/cuda [--rounds 5] [--repeats 10] [--conformance PATH --tests DIR]

PATH/TO/cuda is the program of benches/src/bin/cuda.rs, built elsewhere:
`cargo build --release -p lstm-benches --features cuda --bin cuda`. It needs the driver, and NVRTC (PyTorch's wheels bring
it: put its folder into LD_LIBRARY_PATH) or kernels built before (LSTM_CUDA_KERNELS). Rounds of both alternate; float32
with TF32 off is the comparison, the other precisions are printed beside it. A line of its own, `lstm-cuda tf32`, is the fast
mode, which is not exact, beside PyTorch with TF32 on. All sizes include the input's product.

With --conformance, first the whole conformance suite runs on the device, and then a part of it under compute-sanitizer's
memcheck and racecheck; a tool that refuses the device did not pass. PATH is what `cargo test --release -p lstm-tests
--features cuda --test conformance --no-run` names, DIR a copy of `tests/` with its snapshots and data.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time

SHAPES = [(128, 1, 1000), (256, 1, 1000), (512, 1, 512), (512, 16, 512), (1024, 16, 256), (1024, 64, 256), (2048, 64, 128)]


# Under the sanitizers, which slow kernels down a hundredfold: the exact mode by every path, and few sizes.
SANITIZED = ["cuda::cells::", "cuda::kernel-a-step::rows-4", "cuda::persistent::rows-4"]


def conformance(program, tests):
    """How many of these runs failed."""
    environment = dict(os.environ, CARGO_MANIFEST_DIR=os.path.abspath(tests), LSTM_BACKENDS="cuda", INSTA_WORKSPACE_ROOT=os.path.abspath(tests))
    runs = [("conformance", [program, "--test-threads", "1"])]
    for tool in ("memcheck", "racecheck"):
        found = shutil.which("compute-sanitizer")
        if not found:
            print(f"compute-sanitizer {tool}: not run: it is not on the PATH", flush=True)
            continue
        for part in SANITIZED:
            command = [found, "--tool", tool, "--error-exitcode", "9", program, "--test-threads", "1", part]
            runs.append((f"compute-sanitizer {tool}, {part}", command))
    failed = 0
    for name, command in runs:
        start = time.perf_counter()
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = [line for line in run.stdout.splitlines() if line.strip()]
        ran = any(line.startswith("test result: ok. ") and not line.startswith("test result: ok. 0 ") for line in lines)
        # A sanitizer that can't watch the device says so, and may let the program run.
        refused = any("not supported" in line or "Unable to" in line for line in lines)
        # As does the suite where the bits are not exact.
        whole = not any("not run: " in line for line in lines)
        passed = run.returncode == 0 and ran and whole and not refused
        failed += not passed
        print(f"{name}: {'passed' if passed else 'FAILED'} in {time.perf_counter() - start:.0f} s", flush=True)
        print("\n".join(f"    {line}" for line in lines[-3 if passed else -40 :]), flush=True)
    return failed


def ways(shape):
    """By which paths a shape's steps go where others are left out; clusters don't have larger layers."""
    return ("clusters", "persistent", "steps") if shape[0] <= 512 else ("persistent", "steps")


def other_paths(child, shape, train, repeats):
    """The same passes by clusters, by all blocks together, and by a kernel a step: whether the device's own choice is right."""
    times = []
    for way in ways(shape):
        answer = ask(child, f"{'train' if train else 'forward'}-{way}", *shape, repeats)
        try:
            answer = f"{float(answer):.0f} us"
        except ValueError:
            pass
        times.append(f"{way} {answer}")
    return ", ".join(times)


def ask(child, *words):
    child.stdin.write(" ".join(str(word) for word in words) + "\n")
    child.stdin.flush()
    answer = child.stdout.readline().strip()
    if not answer:
        sys.exit("the program has ended: see its message above")
    return answer


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--conformance", metavar="PATH")
    parser.add_argument("--tests", metavar="DIR", default="tests")
    args = parser.parse_args()
    failed = conformance(args.conformance, args.tests) if args.conformance else 0
    child = subprocess.Popen([args.program, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    different = failed
    for shape in SHAPES:
        for way in ("", *ways(shape)):
            answer = ask(child, f"check-{way}" if way else "check", *shape, 0)
            # That a device does not take the path is no difference.
            different += answer != "identical" and not (way and answer.startswith("not run: it takes another path"))
            print(f"bits {shape}{', ' if way else ''}{way}: {answer}", flush=True)
        print(f"lstm-cuda tf32 {shape}: {ask(child, 'check-tf32', *shape, 0)}", flush=True)
    try:
        import torch
    except ImportError as error:
        print(f"PyTorch: not run: {error}")
        return different > 0
    if not torch.cuda.is_available():
        print("PyTorch: not run: it finds no GPU")
        return different > 0
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    others = [("tf32", torch.float32, True), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, False)]
    for shape in SHAPES:
        for train in (False, True):
            ours, theirs = [], []
            for _ in range(args.rounds):
                ours.append(float(ask(child, "train" if train else "forward", *shape, args.repeats)))
                theirs.append(peer(torch, shape, train, torch.float32, False, args.repeats))
            a, b = statistics.median(ours), statistics.median(theirs)
            hidden, batch, steps = shape
            # 66.9 TFLOP/s of fp32 on an H100 or H200; forward is 16 H^2 flop a step and sequence, with the input's product.
            floor = 16 * hidden**2 * batch * steps * (3 if train else 1) / 66.9e12 * 1e6
            beside = "  ".join(
                f"{name} {peer(torch, shape, train, dtype, tf32, args.repeats):.0f}" for name, dtype, tf32 in others
            )
            spread = f"{min(ours):.0f}-{max(ours):.0f} / {min(theirs):.0f}-{max(theirs):.0f}"
            print(
                f"{shape} {'forward+backward' if train else 'forward'}: ours {a:.0f} us, cuDNN fp32 {b:.0f} us, "
                f"ratio {b / a:.2f}, to the floor {a / floor:.1f}  (spread {spread}; labelled, not compared: {beside})",
                flush=True,
            )
            print(f"    by other paths: {other_paths(child, shape, train, args.repeats)}", flush=True)
            fast, theirs = [], []
            for _ in range(args.rounds):
                answer = ask(child, "train-tf32" if train else "forward-tf32", *shape, args.repeats)
                if answer.startswith("not run"):
                    break
                fast.append(float(answer))
                theirs.append(peer(torch, shape, train, torch.float32, True, args.repeats))
            if len(fast) < args.rounds:
                print(f"    lstm-cuda tf32: {answer}", flush=True)
                continue
            c, d = statistics.median(fast), statistics.median(theirs)
            spread = f"{min(fast):.0f}-{max(fast):.0f} / {min(theirs):.0f}-{max(theirs):.0f}"
            print(
                f"    lstm-cuda tf32 (not exact) {c:.0f} us, cuDNN tf32 {d:.0f} us, ratio {d / c:.2f}; ours exact / ours tf32 "
                f"{a / c:.2f}  (spread {spread})",
                flush=True,
            )
    return different > 0


if __name__ == "__main__":
    sys.exit(main())
