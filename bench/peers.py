#!/usr/bin/env python3
"""Parallel adapters beside PyTorch and `peft` on this machine's processor: one run, in turns, as ratios.

    python3 bench/peers.py [--python PATH] [--shape smollm2-135m] [--rounds 3] [--steps 2] [--json FILE]
    python3 bench/peers.py --peers lora --rounds 5        against LoRA alone

Same sizes, random weights, as many tokens, as many threads; f32 for all. Ours runs once more with
frozen weights, and the activations that meet them, as 8-bit integers (`--weights int8 --activations int8`; what is trained stays
f32), and LoRA once more with the model in bfloat16, which some processors multiply faster. Every round starts one process a
contender, one after the other; each takes a step to warm up and then `--steps` timed ones; the median of all timed steps of all
rounds counts. What a whole run
would take is worked out from the steps: `--samples` / `--batch` of them an epoch, of ours one epoch of fill steps and the others of
cached steps, of the peers all alike. Reading files, tokenising and evaluation are not in it, for nobody.

Peak memory of a process is its resident set at its largest. From PyTorch's what it held after the imports is taken off; from ours
nothing, and what the engine itself counts stands beside it.

--python (or $BARYCENTER_PYTHON) names an interpreter with torch, transformers and peft; $BARYCENTER the program, else the built one.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Short name: (name, method and options of torch_steps.py)
PEERS = {
    "lora-all": ("peft LoRA, loss of transformers", ["lora", "--head", "all"]),
    "lora": ("peft LoRA", ["lora"]),
    "lora-bf16": ("peft LoRA, bf16", ["lora", "--bf16"]),
    "adapters": ("PyTorch adapters", ["adapters"]),
    "full": ("PyTorch full fine-tuning", ["full"]),
}
METHODS = ("parallel_fill", "parallel_cached")
# Name: options of `barycenter bench`
OURS = {"f32": [], "int8": ["--weights", "int8", "--activations", "int8"]}
SPEED_GOAL = 8.64
MEMORY_GOAL = 0.88


def find_program():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for path in [os.environ.get("BARYCENTER"), target / "release/barycenter", target / "debug/barycenter"]:
        if path and pathlib.Path(path).exists():
            return str(path)
    sys.exit("the program is not built: run `cargo build --release -p barycenter`, or name it in BARYCENTER")


def run(command, threads):
    """Standard output and the largest resident set in bytes of a process that must succeed."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as out:
        try:
            process = subprocess.Popen(command, stdout=out, env=environment)
        except OSError as error:
            sys.exit(f"{command[0]} cannot be started ({error.strerror}): name another with --python or BARYCENTER")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{' '.join(command[:4])} … failed")
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024


def ours(options, program, numbers, contenders):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "ours.json")
        command = [program, "bench", "--part", "methods", "--device", "cpu", "--shape", options.shape, "--method", ",".join(METHODS), "--json", str(file)] + OURS[numbers]
        at_once = ["--micro-batch", str(options.micro_batch)] if options.micro_batch else []
        _, rss = run(command + sizes(options) + at_once, options.threads)
        rows = json.loads(file.read_text())["models"][0]["rows"]
    for row in rows:
        name = f"ours {numbers}, {row['method']}"
        if "left_out" in row:
            contenders[name] = {"left_out": row["left_out"]}
            continue
        entry = contenders.setdefault(name, {"seconds": []})
        entry["seconds"] += row["seconds"]
        # One process makes both kinds of step, as a run does.
        entry.update(engine_bytes=row["peak_memory_bytes"], cache_bytes=row["cache_bytes"], peak_bytes=max(rss, entry.get("peak_bytes", 0)))


def peer(options, python, name, arguments, contenders):
    command = [python, str(ROOT / "bench/peers/torch_steps.py"), *arguments, "--shape", options.shape, "--threads", str(options.threads)]
    out, _ = run(command + sizes(options), options.threads)
    result = json.loads(out.strip().splitlines()[-1])
    entry = contenders.setdefault(name, {"seconds": [], "peak_bytes": 0})
    entry["seconds"] += result["seconds"]
    entry["peak_bytes"] = max(entry["peak_bytes"], result["peak_rss_bytes"])
    entry.update(import_bytes=result["import_rss_bytes"], versions=result["versions"])


def sizes(options):
    return ["--batch", str(options.batch), "--sequence", str(options.sequence), "--labels", str(options.labels), "--steps", str(options.steps)]


def report(options, contenders):
    steps_an_epoch = options.samples / options.batch
    print(f"\n{options.shape}, {options.batch} × {options.sequence} tokens, {options.labels} labelled in each, {options.threads} threads; medians of {options.rounds} × {options.steps} steps, in turns")
    print(f"{options.epochs} epochs of {options.samples} samples worked out from them: {steps_an_epoch:.2f} steps an epoch")
    print(f"{'':<34} {'s/step':>8} {'from':>8} {'to':>8} {'peak MB':>9}")
    for name, entry in contenders.items():
        if "left_out" in entry:
            print(f"{name:<34} {entry['left_out']}")
            continue
        entry["median_seconds"] = statistics.median(entry["seconds"])
        if "import_bytes" in entry:
            memory = entry["peak_bytes"] - entry["import_bytes"]
            note = f"resident {entry['peak_bytes'] / 1e6:.0f} MB, {entry['import_bytes'] / 1e6:.0f} MB of it before there was a model"
        else:
            memory = entry["engine_bytes"]
            note = f"counted by the engine; resident {entry['peak_bytes'] / 1e6:.0f} MB in all; cache {entry['cache_bytes'] / 1e6:.1f} MB a mini-batch"
        entry["memory_bytes"] = memory
        print(f"{name:<34} {entry['median_seconds']:>8.2f} {min(entry['seconds']):>8.2f} {max(entry['seconds']):>8.2f} {memory / 1e6:>9.0f}   {note}")

    total = lambda entry: steps_an_epoch * options.epochs * entry["median_seconds"]
    verdict = lambda met: "met" if met else "not met"
    summary = {"steps_an_epoch": steps_an_epoch}
    for numbers in OURS:
        fill, cached = (contenders[f"ours {numbers}, {method}"] for method in METHODS)
        if "left_out" in fill:
            print(f"no ratios: {fill['left_out']}")
            continue
        our_total = steps_an_epoch * (fill["median_seconds"] + (options.epochs - 1) * cached["median_seconds"])
        result = summary[numbers] = {"our_seconds": our_total, "fill_to_cached": fill["median_seconds"] / cached["median_seconds"], "peers": {}}
        print(f"\nours {numbers}, 1 epoch of fill and {options.epochs - 1} of cached steps: {our_total / 60:.1f} min; cached step {result['fill_to_cached']:.2f} × as fast as the fill step")
        # The whole process is held against the whole process: the larger of our two figures, the smaller of theirs.
        our_bytes = max(fill["peak_bytes"], cached["peak_bytes"])
        for peer in options.peers:
            name, _ = PEERS[peer]
            entry = contenders[name]
            faster, less = total(entry) / our_total, 1 - our_bytes / entry["memory_bytes"]
            engine_less = 1 - fill["engine_bytes"] / entry["memory_bytes"]
            result["peers"][name] = {"seconds": total(entry), "times_faster": faster, "less_memory_resident": less, "less_memory_engine": engine_less}
            print(f"{name}, {options.epochs} epochs: {total(entry) / 60:.1f} min: ours {faster:.2f} × as fast; memory {100 * engine_less:.0f} % less by the engine's count, {100 * less:.0f} % by the resident set")
            if peer == "lora":
                print(f"  goal: end to end ≥ {SPEED_GOAL} × faster than LoRA: {faster:.2f} ×, {verdict(faster >= SPEED_GOAL)}")
            if peer == "full":
                print(f"  goal: ≥ {100 * MEMORY_GOAL:.0f} % less peak memory than full fine-tuning: {100 * engine_less:.0f} % (engine), {100 * less:.0f} % (resident), {verdict(less >= MEMORY_GOAL)}")
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("BARYCENTER_PYTHON", sys.executable))
    parser.add_argument("--shape", choices=["smollm2-135m", "t5-base"], default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, help="sequences that ours takes at once, with gradients added up (default: the mini-batch)")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--labels", type=int, default=2, help="labelled tokens of a sequence: an answer and its end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=3668, help="of an epoch (MRPC's training set)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"which of {', '.join(PEERS)}, with commas (default: all)")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    for name in options.peers:
        if name not in PEERS:
            parser.error(f"--peers {name} is not there: choose from {', '.join(PEERS)}")

    program, contenders = find_program(), {}
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
        for numbers in OURS:
            ours(options, program, numbers, contenders)
        for name in options.peers:
            peer(options, options.python, *PEERS[name], contenders)
    summary = report(options, contenders)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "python")}
        options.json.write_text(json.dumps({"settings": settings, "contenders": contenders, "summary": summary}, indent=2) + "\n")


if __name__ == "__main__":
    main()
