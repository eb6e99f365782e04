"""What maps of pictures cost on one thread: 64 images of 32 × 32 on ResNet-20, one checkpoint.

    python benchmarks/vision.py [--rounds 5] [--weights runs/resnet20/step-000003140.safetensors] [--only score_cam]

With `--weights` the network has those of a checkpoint (else random ones), and with CIFAR-10 at hand the pictures are its first
test images (else noise): components of trained activations are found sooner than those of noise.
Each case runs in a process of its own, once to warm up and then measured; rounds are interleaved, and ratios are of processor
seconds within a round, which other work on the machine hardly touches. Beside ours stand:

- one Grad-CAM, for the nine maps that come from the same pass;
- captum's class for the same map, with the same number of passes, all images in one batch;
- one bare forward pass of all images for each of the layer's channels, of the network as it is and of the copy that ours runs
  for Score-CAM; for Ablation-CAM ours runs only what follows the layer;
- Score-CAM and Ablation-CAM in a lean loop over one image and one channel: no gradients, nothing but the pass and the score;
- the loops of pytorch-cnn-visualizations, written anew from what they do: one image at a time, a hook on the layer, a forward
  pass, `backward` from a one-hot vector, the map as an array. Its Score-CAM goes through the network's modules one after the
  other with gradients recorded; for each channel it enlarges the map, leaves out constant ones, scales it from 0 to 1, runs
  the picture times the map, takes the softmax's entry as an array and adds the map times it;
- the same attribution with a batch of 16 and of 64, for the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import RESULTS, in_own_process, interleaved, measured, ratio, summary, write_results

WEIGHTS = "BENCHMARK_WEIGHTS"
"""In the environment of the measured processes: the checkpoint's file."""
THREADS = "BENCHMARK_THREADS"
"""In the environment of the measured processes: the threads of torch."""
IMAGES, LAYER, STEPS, DRAWS = 64, "layer3.2.conv2", 32, 16
FEW = 4
"""So many images for the loops over one image and one channel; their time is given for all."""
NINE = (
    "grad_cam", "grad_cam_plus_plus", "x_grad_cam", "hi_res_cam", "element_wise_cam", "layer_cam", "eigen_cam",
    "eigen_grad_cam", "fem",
)  # fmt: skip
GRADIENTS = {
    "gradient": {}, "gradient_times_input": {}, "guided_backpropagation": {}, "deconvolution": {},
    "smooth_grad": {"draws": DRAWS}, "integrated_gradients": {"steps": STEPS, "most_steps": STEPS},
    "expected_gradients": {"draws": DRAWS},
}  # fmt: skip


def pictures(count: int) -> Any:
    """float32 (picture, 3, 32, 32): CIFAR-10's first test images, normalised; noise where they are not there."""
    import torch

    from stratascope.errors import StratascopeError
    from stratascope.storage.probes import ProbeSpec, build_probe

    try:
        probe = build_probe("test", ProbeSpec(dataset="cifar10", split="test", limit=count), Path())
        return torch.from_numpy(np.asarray(probe.inputs_at(slice(0, count)), np.float32))
    except StratascopeError:
        return torch.randn(count, 3, 32, 32)


class Given:
    """The network and the pictures, the same in every process."""

    def __init__(self, images: int = IMAGES) -> None:
        import torch

        from stratascope.storage.model_spec import ModelSpec
        from stratascope.tasks.models import cifar_resnet
        from stratascope.tasks.vision.image_network import ImageNetwork
        from stratascope.tasks.vision.targets import Target

        torch.set_num_threads(int(os.environ.get(THREADS, "1")))
        torch.manual_seed(0)
        self.module = cifar_resnet(20).eval()
        if os.environ.get(WEIGHTS):
            from safetensors.torch import load_file

            self.module.load_state_dict(load_file(os.environ[WEIGHTS]))
        self.network = ImageNetwork(self.module, ModelSpec(factory="stratascope.tasks.models:cifar_resnet"))
        self.inputs = pictures(images)
        self.indices = torch.arange(images) % 10
        self.target = Target("label")
        self.names = np.arange(images)

    def explained(self, method: str, batch: int = IMAGES) -> Any:
        import torch

        from stratascope.tasks.vision.attribution_methods import Explained, method_named

        settings = dict(method_named(method).settings) | GRADIENTS.get(method, {})
        return Explained(
            self.network, self.inputs, self.indices, self.target, self.names, torch.zeros_like(self.inputs), self.inputs[:16],
            0, batch, settings,
        )  # fmt: skip

    def question(self) -> tuple[Any, Any, Any]:
        import torch

        from stratascope.storage.probes import Probe
        from stratascope.tasks.vision.class_activation_passes import Question
        from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed

        probe = Probe("test", "test", self.inputs.numpy(), None, self.names, (), "made up")
        known = observed(self.network, probe).layers
        layers = chosen_spatial_layers([LAYER], known, (32, 32))
        asked = Question(self.network, self.inputs, self.indices, self.target, self.names, torch.zeros_like(self.inputs), 0, 64)  # fmt: skip
        return asked, layers, known


def ours(method: str) -> Callable[[], Any]:
    from stratascope.tasks.vision.attribution_methods import method_named

    given = Given()
    with_settings = method_named(method)
    return lambda: with_settings.compute(given.explained(method))


def captums(method: str) -> Callable[[], Any]:
    from captum import attr

    given = Given()
    given.inputs.requires_grad_()
    module, inputs, target = given.module, given.inputs, given.indices
    if method == "smooth_grad":
        tunnel = attr.NoiseTunnel(attr.Saliency(module))
        return lambda: tunnel.attribute(inputs, nt_samples=DRAWS, nt_samples_batch_size=1, stdevs=0.5, target=target, abs=False)  # fmt: skip
    if method == "integrated_gradients":
        return lambda: attr.IntegratedGradients(module).attribute(inputs, 0, target, n_steps=STEPS, internal_batch_size=IMAGES)  # fmt: skip
    if method == "expected_gradients":
        # captum takes all draws of all images at once, and has no bound for them.
        return lambda: attr.GradientShap(module).attribute(inputs, inputs[:16].detach(), n_samples=DRAWS, target=target)  # fmt: skip
    made = {
        "gradient": attr.Saliency, "gradient_times_input": attr.InputXGradient,
        "guided_backpropagation": attr.GuidedBackprop, "deconvolution": attr.Deconvolution,
    }[method](module)  # fmt: skip
    more = {"abs": False} if method == "gradient" else {}
    return lambda: made.attribute(inputs, target, **more)


def cams(names: tuple[str, ...]) -> Callable[[], Any]:
    from stratascope.tasks.vision.class_activation_passes import layer_maps

    asked, layers, known = Given().question()
    return lambda: layer_maps(asked, layers, names, known)


def bare_forwards(of: str) -> Callable[[], Any]:
    """A forward pass of all images for each of the layer's 64 channels, and nothing else: `plain`, or `folded` as ours runs."""
    import torch

    from stratascope.tasks.vision.forward_copy import forward_copy

    given = Given()
    with given.network.untouched():
        copied = forward_copy(given.network, given.inputs, 64 * IMAGES)
    assert copied is not given.network
    module = copied.network if of == "folded" else given.module

    def whole() -> None:
        with torch.no_grad():
            for _ in range(64):
                module(given.inputs)

    return whole


def one_by_one(of: str) -> Callable[[], Any]:
    """Score-CAM or Ablation-CAM in a lean loop over one image and one channel, without gradients, for a few images."""
    import torch
    from torch.nn import functional

    given = Given()
    module, kept = given.module, {}
    layer = module.get_submodule(LAYER)

    def score_cam() -> None:
        handle = layer.register_forward_hook(lambda m, i, o: kept.update(values=o.clone()))
        with torch.no_grad():
            for image, index in zip(given.inputs[:FEW], given.indices, strict=False):
                module(image[None])
                maps = kept["values"]
                for channel in range(maps.shape[1]):
                    shown = functional.interpolate(maps[:, channel : channel + 1], (32, 32), mode="bilinear")
                    low, high = shown.min(), shown.max()
                    if high > low:
                        float(module(image[None] * (shown - low) / (high - low))[0, index])
        handle.remove()

    def ablation_cam() -> None:
        with torch.no_grad():
            for image, index in zip(given.inputs[:FEW], given.indices, strict=False):
                for channel in range(64):

                    def without(m: Any, i: Any, output: Any, channel: int = channel) -> Any:
                        output[:, channel] = 0
                        return output

                    handle = layer.register_forward_hook(without)
                    float(module(image[None])[0, index])
                    handle.remove()

    return score_cam if of == "score_cam" else ablation_cam


def image_loop(of: str) -> Callable[[], Any]:
    """pytorch-cnn-visualizations' way: one image, a hook, `backward` from a one-hot vector."""
    import torch

    if of == "score_cam":
        return score_cam_loop()
    given = Given()
    module, kept = given.module, {}
    layer = module.get_submodule(LAYER)

    def one(image: Any, index: int) -> None:
        picture = image[None].clone().requires_grad_()
        handle = layer.register_forward_hook(lambda m, i, o: kept.update(values=o, gradient=o.register_hook(lambda g: kept.update(found=g))))  # fmt: skip
        output = module(picture)
        handle.remove()
        hot = torch.zeros_like(output)
        hot[0, index] = 1
        module.zero_grad()
        output.backward(gradient=hot)
        if of == "gradient":
            picture.grad.numpy()
            return
        weights = kept["found"][0].mean((1, 2)).numpy()
        np.maximum((weights[:, None, None] * kept["values"][0].detach().numpy()).sum(0), 0)

    def every() -> None:
        for image, index in zip(given.inputs, given.indices.tolist(), strict=True):
            one(image, index)

    return every


def score_cam_loop() -> Callable[[], Any]:
    """pytorch-cnn-visualizations' Score-CAM, for a few images: its modules in a row, with gradients recorded."""
    from torch.nn import functional

    given = Given()
    kept: dict[str, Any] = {}
    layer = given.module.get_submodule(LAYER)

    def passed(picture: Any) -> Any:
        for name, part in given.module.named_children():
            picture = part(picture.flatten(1) if name == "fc" else picture)
        return picture

    def one(image: Any, index: int) -> None:
        picture = image[None].clone().requires_grad_()
        handle = layer.register_forward_hook(lambda m, i, o: kept.update(values=o))
        passed(picture)
        handle.remove()
        maps = kept["values"][0]
        total = np.zeros(tuple(maps.shape[1:]), np.float32)
        for channel in range(len(maps)):
            shown = functional.interpolate(
                maps[channel][None, None], (32, 32), mode="bilinear", align_corners=False
            )
            if shown.max() == shown.min():
                continue
            shown = (shown - shown.min()) / (shown.max() - shown.min())
            share = functional.softmax(passed(picture * shown), 1)[0][index]
            total += share.detach().numpy() * maps[channel].detach().numpy()
        total = np.maximum(total, 0)
        (total - total.min()) / (np.ptp(total) or 1)

    def few() -> None:
        for image, index in zip(given.inputs[:FEW], given.indices.tolist(), strict=False):
            one(image, index)

    return few


def batched(size: str) -> Callable[[], Any]:
    from stratascope.tasks.vision.attribution_methods import method_named

    given = Given(256)
    method = method_named("integrated_gradients")
    return lambda: method.compute(given.explained("integrated_gradients", int(size)))


KINDS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "ours": ours, "captum": captums, "bare": bare_forwards, "one_by_one": one_by_one, "image_loop": image_loop,
    "batched": batched,
}  # fmt: skip
CASES = (
    "cams nine", "cams grad_cam", *(f"{kind} {name}" for name in GRADIENTS for kind in ("ours", "captum")),
    *(f"{kind} {name}" for name in ("score_cam", "ablation_cam") for kind in ("cams", "one_by_one")), "bare plain", "bare folded",
    "image_loop score_cam", "image_loop gradient", "image_loop grad_cam", "batched 16", "batched 64",
)  # fmt: skip


def run(case: str) -> dict[str, Any]:
    """One case in this process: once to warm up, then measured; the shortest cases five times."""
    kind, name = case.split()
    work = cams(NINE if name == "nine" else (name,)) if kind == "cams" else KINDS[kind](name)
    if kind == "batched":
        return measured(work)
    work()
    times = 5 if kind in ("ours", "captum", "cams", "image_loop") and name not in ("score_cam", "smooth_grad", "integrated_gradients", "expected_gradients") else 1  # fmt: skip
    found = measured(lambda: [work() for _ in range(times)])
    scale = (IMAGES / FEW if kind == "one_by_one" or case == "image_loop score_cam" else 1) / times
    return found | {name: found[name] * scale for name in ("seconds", "processor_seconds")}


def compared() -> dict[str, tuple[str, str]]:
    """The cases that each ratio divides, by its name."""
    pairs = {"nine gradient maps by one Grad-CAM": ("cams nine", "cams grad_cam")}
    for name in GRADIENTS:
        pairs[f"{name} by captum's"] = (f"ours {name}", f"captum {name}")
    for name in ("score_cam", "ablation_cam"):
        pairs[f"{name} by a bare forward for each channel"] = (f"cams {name}", "bare plain")
        pairs[f"{name} in a lean loop over images and channels, by ours"] = (f"one_by_one {name}", f"cams {name}")
    pairs["score_cam by a bare forward of its copy for each channel"] = ("cams score_cam", "bare folded")
    for name in ("score_cam", "grad_cam"):
        pairs[f"{name}, one image at a time, by ours"] = (f"image_loop {name}", f"cams {name}")
    pairs["gradient, one image at a time, by ours"] = ("image_loop gradient", "ours gradient")
    return pairs


def earlier(part: str) -> dict[str, Any]:
    """What the last run left of the cases or ratios, that a run of some cases alone keeps."""
    path = RESULTS / "vision.json"
    return dict(json.loads(path.read_text())[part]) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", default="")
    parser.add_argument("--case", default="")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="words in the ratios to measure anew"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of each process; with more than one, seconds on the clock count"
    )
    options = parser.parse_args()
    if options.threads > 1:
        os.environ[THREADS] = str(options.threads)
    if options.weights:
        os.environ[WEIGHTS] = str(Path(options.weights).absolute())
    if options.case:
        print(json.dumps(run(options.case)))
        return
    pairs = compared()
    wanted = {name for name in pairs if not options.only or any(word in name for word in options.only)}
    chosen = [case for case in CASES if not options.only or any(case in pairs[name] for name in wanted)]
    runs = interleaved(options.rounds, chosen, lambda case: in_own_process(__file__, "--case", case))
    alone = options.threads == 1
    said = "" if alone else f", {options.threads} threads"
    time = "processor_seconds" if alone else "seconds"
    found = {
        name + said: ratio(runs[pairs[name][0]], runs[pairs[name][1]], time) | {"rounds": options.rounds}
        for name in wanted
    }
    cases = {
        case: {"processor seconds": summary(own, "processor_seconds"), "peak megabytes": summary(own, "peak_bytes")["median"] / 1e6}
        for case, own in runs.items()
        if alone
    }  # fmt: skip
    kept = {
        name: numbers
        for name, numbers in earlier("ratios").items()
        if re.sub(r", \d+ threads$", "", name) in pairs
    }
    kept_cases = {case: numbers for case, numbers in earlier("cases").items() if case in CASES}
    write_results("vision", {"what": __doc__, "threads": 1, "weights": Path(options.weights).name, "images": IMAGES, "layer": LAYER, "ratios": kept | found, "cases": kept_cases | cases})  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
