"""What Winograd's convolution saves on one thread, by the shape that it meets, and how exact it is.

    python benchmarks/convolution.py [--rounds 9]

Convolutions of 3 × 3 with a border of 1, as they stand in ResNet-20 on 32 × 32 pixels and in ResNet-18 and VGG on 224 × 224,
with batches that fill the work. Within a round torch's own convolution (channels last) and ours run after one another in one
process, each once to warm up; the ratio is of their processor seconds. The error is the largest difference from sums in
float64, relative to the largest output; torch's stands beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import in_own_process, summary, write_results

SHAPES = (
    (64, 16, 32), (64, 32, 16), (64, 64, 8), (4, 64, 56), (8, 128, 28), (16, 256, 14), (32, 512, 7), (1, 64, 224), (64, 64, 5),
)  # fmt: skip
"""Images in a batch, channels in and out, pixels along y and x."""


def seconds(work: Callable[[], Any], least: float = 0.2) -> float:
    """Processor seconds of one call, from as many as fill `least` seconds."""
    work()
    calls, begin = 0, time.process_time()
    while time.process_time() - begin < least:
        work()
        calls += 1
    return (time.process_time() - begin) / calls


def shape(images: int, channels: int, size: int, rounds: int) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from stratascope.tasks.vision.winograd_convolution import WinogradConvolution

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.rand(images, channels, size, size).to(memory_format=torch.channels_last)
    direct = torch.nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    ours = WinogradConvolution(direct)
    with torch.no_grad():
        exact = functional.conv2d(inputs[:1].double(), direct.weight.double(), direct.bias.double(), padding=1)
        errors = [float((found(inputs)[:1] - exact).abs().max() / exact.abs().max()) for found in (ours, direct)]
        runs = [
            {"seconds": seconds(lambda: direct(inputs)) / seconds(lambda: ours(inputs))} for _ in range(rounds)
        ]
    return summary(runs) | {"rounds": rounds, "error": errors[0], "error of torch": errors[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", type=int, nargs=3, default=None)
    options = parser.parse_args()
    if options.shape:
        print(json.dumps(shape(*options.shape, options.rounds)))
        return
    found = [
        {"images": images, "channels": channels, "pixels": size}
        | in_own_process(__file__, "--rounds", options.rounds, "--shape", images, channels, size)
        for images, channels, size in SHAPES
    ]
    write_results("convolution", {"what": __doc__, "threads": 1, "shapes": found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
