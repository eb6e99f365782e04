"""The class activation maps by name: what each is, where it comes from and when its picture misleads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CamMethod:
    """One method with its words."""

    title: str
    kind: Literal["gradient", "forward", "null", "picture"]
    """From one shared pass; by running the network again; knowing nothing of the class; at the picture's own size."""
    formula: str
    source: str
    lies_when: str
    column: str = ""
    """A short name, where the title is too long to stand above a narrow column."""

    @property
    def short(self) -> str:
        return self.column or self.title


METHODS: dict[str, CamMethod] = {
    "grad_cam": CamMethod(
        "Grad-CAM", "gradient", "Σ_k mean(G_k) A_k", "Selvaraju et al. 2017",
        "the head reads positions unlike: the mean gradient then lights places that the score does not use",
    ),
    "grad_cam_plus_plus": CamMethod(
        "Grad-CAM++", "gradient", "w_k = Σ max(G_k, 0) / (2 + ΣA_k · G_k)", "Chattopadhyay et al. 2018",
        "the layer has negative activations, or evidence against the class matters: only gradients above 0 count",
    ),
    "x_grad_cam": CamMethod(
        "XGrad-CAM", "gradient", "w_k = Σ G_k A_k / Σ A_k", "Fu et al. 2020",
        "a channel's activations nearly cancel: it then gets a huge weight",
    ),
    "hi_res_cam": CamMethod(
        "HiResCAM", "gradient", "Σ_k G_k ⊙ A_k", "Draelos and Carin 2020",
        "more than one linear layer follows: it is then a first order statement only",
    ),
    "element_wise_cam": CamMethod(
        "element-wise", "gradient", "Σ_k max(G_k ⊙ A_k, 0)", "Grad-CAM with a weight for each place",
        "channels argue against each other: evidence against the class is thrown away before it is summed",
        column="elements",
    ),
    "layer_cam": CamMethod(
        "LayerCAM", "gradient", "Σ_k max(G_k, 0) ⊙ A_k", "Jiang et al. 2021",
        "used early in the network: it lights edges of everything, for the class and against it",
    ),
    "eigen_cam": CamMethod(
        "Eigen-CAM", "gradient", "A v₁, first right singular vector", "Muhammad and Yeasin 2020",
        "there is more than one thing to see: it is the same map for every class",
        column="Eigen",
    ),
    "eigen_grad_cam": CamMethod(
        "Eigen-Grad-CAM", "gradient", "(G ⊙ A) v₁", "Eigen-CAM of G ⊙ A",
        "the first singular values are nearly equal: the direction is then arbitrary and jumps between checkpoints",
        column="EigenGrad",
    ),
    "fem": CamMethod(
        "FEM", "gradient", "Σ_k mean(A_k) [A_k > μ_k + 2 σ_k]", "Fuad et al. 2020",
        "always where a class is asked about: it does not know of it",
    ),
    "score_cam": CamMethod(
        "Score-CAM", "forward", "w = softmax_k f(x ⊙ up(A_k))", "Wang et al. 2020",
        "logits are large: the softmax gives one channel everything; and masked pictures lie outside the data",
        column="Score",
    ),
    "score_cam_raw": CamMethod(
        "Score-CAM, raw", "forward", "w_k = f(x ⊙ up(A_k)) − f(x')", "Wang et al. 2020, without softmax",
        "the baseline has a high score itself: all weights then carry its bias",
        column="Score raw",
    ),
    "ablation_cam": CamMethod(
        "Ablation-CAM", "forward", "w_k = f(x) − f(x without A_k)", "Desai and Ramaswamy 2020, without division",
        "channels stand in for one another: each alone seems to matter little",
        column="Ablation",
    ),
    "full_grad": CamMethod(
        "FullGrad", "picture", "Σ|x ⊙ ∂f/∂x| + Σ_l up(Σ|b_l ⊙ ∂f/∂z_l|)", "Srinivas and Fleuret 2019",
        "the network is not piecewise linear: the completeness gap then says how much is missing",
    ),
    "guided_grad_cam": CamMethod(
        "guided Grad-CAM", "picture", "up(max(Grad-CAM, 0)) ⊙ guided gradient", "Selvaraju et al. 2017",
        "nearly always in its fine detail: guided gradients redraw the picture's edges even with random weights",
    ),
    "random_cam": CamMethod(
        "random channels", "null", "Σ_k u_k A_k, u from −1 to 1", "a null: what any method must beat",
        "never meant to be right: a method that does not beat it says nothing",
        column="random",
    ),
    "edges": CamMethod(
        "picture's edges", "null", "|Sobel(x)| in the layer's cells", "a null: Adebayo et al. 2018",
        "never meant to be right: a method that equals it shows the picture, not the network",
        column="edges",
    ),
}  # fmt: skip

DEFAULT_METHODS = (
    "grad_cam", "grad_cam_plus_plus", "x_grad_cam", "hi_res_cam", "element_wise_cam", "layer_cam", "eigen_cam",
    "eigen_grad_cam", "fem", "full_grad", "random_cam", "edges",
)  # fmt: skip
REFERENCE = "hi_res_cam"
"""What agreement is measured against."""
