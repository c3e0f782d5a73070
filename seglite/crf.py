"""The fully connected CRF for people: one function, the field's parameter values by name, and a stand-in for pydensecrf.

A network knows *what* is in a picture but is blurry about *where* it ends, because its scores were computed at 1/8 or 1/16 of the size. The
CRF looks for labels that agree with the network and give equal labels to pixels that are near each other and look alike
(Krahenbuhl and Koltun, NIPS 2011, arXiv 1210.5644; DeepLab, arXiv 1606.00915, section 3.3). The mathematics and the kernels are in
kernels/dense_crf.py: exact sums on CUDA, the permutohedral lattice on a CPU.

    from seglite.crf import dense_crf
    refined = dense_crf(photo, probabilities, preset="deeplab-voc")       # [H, W, 3] uint8, [K, H, W] -> [K, H, W]

    python -m seglite.crf photo.jpg labels.png out.png                    # help: all keys

A script written for pydensecrf changes its imports and nothing else:

    import seglite.crf as dcrf                                            # was: import pydensecrf.densecrf as dcrf
    from seglite.crf import unary_from_softmax                            # was: from pydensecrf.utils import unary_from_softmax

What the numbers mean (K classes, N pixels, energies are -log p):

    unary_i(l)  = -log clip(P_i(l), 1e-5, 1)
    smoothness  = gaussian_weight exp(-|x_i - x_j|^2 / 2 gaussian_sxy^2)                              theta_gamma = gaussian_sxy, in pixels
    appearance  = bilateral_weight exp(-|x_i - x_j|^2 / 2 bilateral_sxy^2 - |c_i - c_j|^2 / 2 bilateral_srgb^2)   theta_alpha, theta_beta

Colours run from 0 to 255 and positions count pixels: an image scaled to 0..1 needs srgb / 255, a smaller image a smaller sxy.

Signs. A scalar weight w attracts: it costs w to give two alike pixels different labels (Potts). A compatibility vector or matrix is an
*energy* added as it is, so positive numbers repel: the vector that equals the scalar w is -w 1, the matrix -w I or w (1 - I).
There is no kernel weight besides: `compat` is the weight. Matrices are symmetrised, (M + M^T) / 2.

Normalisation is where implementations differ, and weights tuned for one do not fit another: "after" averages the messages (DeepLab's own
C++, CRF-RNN), "symmetric" is the default of pydensecrf, "before" and "none" complete the set.
"""
from __future__ import annotations

import enum
import sys
import warnings
from dataclasses import dataclass, replace
from numbers import Number
from pathlib import Path

import numpy as np
import torch

from kernels import permutohedral
from kernels.backend import path_for
from kernels.dense_crf import Bilateral, Features, Gaussian, check_colours, gaussian_message, mean_field, pixel_features


# ---- presets ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """One line of the table of published parameter values."""

    gaussian_sxy: float
    """theta_gamma: reach of the smoothness kernel, pixels"""
    gaussian_weight: float
    """w2: its weight"""
    bilateral_sxy: float
    """theta_alpha: reach of the appearance kernel in the plane, pixels"""
    bilateral_srgb: float
    """theta_beta: its reach in colour, of 255"""
    bilateral_weight: float
    """w1: its weight"""
    iterations: int = 10
    """mean-field updates; a protocol, not convergence"""
    normalization: str = "after"
    """after, symmetric, before or none"""
    warning: str = ""
    """said when the preset is used"""

    def kernels(self) -> tuple[Gaussian, Bilateral]:
        """The two pairwise kernels as `mean_field` takes them."""
        return Gaussian(self.gaussian_sxy, self.gaussian_weight), Bilateral(self.bilateral_sxy, self.bilateral_srgb, self.bilateral_weight)


PRESETS = {
    "deeplab-voc": Preset(1, 3, 67, 3, 4),  # DeepLab v2 ResNet-101 on VOC; also used for COCO-Stuff
    "deeplab-voc-vgg": Preset(2, 2, 65, 3, 4),  # DeepLab v2 VGG-16 on VOC
    "deeplab-sample": Preset(3, 3, 49, 5, 4),  # the sample script of DeepLab's repository
    "deeplab-v1": Preset(3, 3, 50, 10, 5),  # the boundary study of DeepLab v1
    "deeplab-layer": Preset(1, 4, 21, 3, 5),  # the CRF layer in the ResNet test network, commented out there
    "camvid": Preset(3, 3, 50, 3, 5),  # the CamVid script of a DeepLab v1 port, 480 x 360
    "crf-rnn": Preset(3, 3, 160, 3, 5),  # starting values of CRF-RNN's PyTorch port; 5 iterations in training, 10 in test
    "pydensecrf-readme": Preset(3, 3, 80, 13, 10, 5, "symmetric",
                                "preset pydensecrf-readme was made for a demo on hand-drawn scribbles: as refinement of a network's scores it "
                                "removes thin and small objects; prefer deeplab-voc, or values searched on your validation images"),
}
# NIPS 2011 itself used 1 and 1 for the smoothness, about 61 and 11 for the appearance; its w1 was searched and never printed, so it is no preset.


def preset_of(preset: str | Preset, **changes) -> Preset:
    """The preset called so, with some values changed (None leaves a value alone). ValueError names the presets there are.

    "1/3/67/3/4", "1/3/67/3/4/10" and "1/3/67/3/4/10/after" spell one out: the fields of `Preset` in order.
    """
    if isinstance(preset, str) and "/" in preset:
        preset = _spelled(preset)
    elif isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}, or pass a seglite.crf.Preset")
        preset = PRESETS[preset]
    return replace(preset, **{key: value for key, value in changes.items() if value is not None})


def _spelled(text: str) -> Preset:
    words = text.split("/")
    try:
        if not 5 <= len(words) <= 7:
            raise ValueError
        return Preset(*(float(w) for w in words[:5]), *(int(w) for w in words[5:6]), *words[6:])
    except ValueError:
        raise ValueError(f"preset {text!r}: expected gaussian_sxy/gaussian_weight/bilateral_sxy/bilateral_srgb/bilateral_weight, "
                         "then perhaps /iterations and /normalization, for example 1/3/67/3/4/10/after") from None


# ---- the friendly function --------------------------------------------------------------------------------------------------------------


def dense_crf(image, probabilities, preset: str | Preset = "deeplab-voc", *, gaussian_sxy: float | None = None, gaussian_weight: float | None = None,
              bilateral_sxy: float | None = None, bilateral_srgb: float | None = None, bilateral_weight: float | None = None,
              iterations: int | None = None, normalization: str | None = None, compat=None, clip: float | None = 1e-5, skip_below: float = 0.0,
              method: str = "auto", self_message: bool = True):
    """Label probabilities refined by the fully connected CRF, in the type, device and shape of `probabilities`.

    image: numpy (or pillow) [H, W, C] or [B, H, W, C], torch [C, H, W] or [B, C, H, W]; colours 0..255 as they were before any
        normalisation, of any dtype.
    probabilities: softmax scores [K, H, W] or [B, K, H, W], numpy or torch, on any device; gradients flow through torch tensors.
    preset: a name from `PRESETS`, or a `Preset`; every other keyword in its place changes one value of it.
    compat: [K, K] label energies for both kernels (see Signs above); None: Potts.
    clip: smallest probability before the log; None: leave probabilities as they are.
    skip_below: labels that stay below this probability everywhere in an image are left out of its CRF and get 0: time on a CPU is about
        proportional to the number of labels. 0: keep all.
    method: "exact", "lattice" or "auto" (exact on CUDA, lattice on CPU). self_message=False: the paper's sum without j = i (exact only).
    """
    chosen = preset_of(preset, gaussian_sxy=gaussian_sxy, gaussian_weight=gaussian_weight, bilateral_sxy=bilateral_sxy,
                       bilateral_srgb=bilateral_srgb, bilateral_weight=bilateral_weight, iterations=iterations, normalization=normalization)
    if chosen.warning:
        warnings.warn(chosen.warning, stacklevel=2)
    p = probabilities if torch.is_tensor(probabilities) else torch.from_numpy(np.ascontiguousarray(probabilities))
    single = p.dim() == 3
    p = p[None] if single else p
    if p.dim() != 4 or not p.is_floating_point():
        raise ValueError(f"probabilities must be floating-point [K, H, W] or [B, K, H, W]; got {p.dtype} {list(p.shape)}"
                         + ("; for a label map use label_unary and mean_field, or python -m seglite.crf" if not p.is_floating_point() else ""))
    _check_probabilities(p)
    picture = _pictures(image, p)
    matrix = None if compat is None else torch.as_tensor(compat, dtype=torch.float32, device=p.device)
    options = {"iterations": chosen.iterations, "normalization": chosen.normalization, "method": method, "self_message": self_message}
    if skip_below:
        refined = torch.zeros_like(p)
        for i in range(len(p)):
            kept = (p[i].detach().amax((1, 2)) >= skip_below).nonzero()[:, 0]
            if len(kept) < 2:
                refined[i] = p[i]
                continue
            part = None if matrix is None else matrix[kept][:, kept]
            refined[i, kept] = mean_field(energies(p[i : i + 1, kept], clip), picture[i : i + 1], chosen.kernels(), compat=part, **options)[0]
    else:
        refined = mean_field(energies(p, clip), picture, chosen.kernels(), compat=matrix, **options)
    refined = refined[0] if single else refined
    return refined if torch.is_tensor(probabilities) else refined.numpy()


def energies(probabilities: torch.Tensor, clip: float | None = 1e-5) -> torch.Tensor:
    """-log of probabilities of any shape, clipped from below first, so that a label the network excluded can still be revived."""
    return -(probabilities if clip is None else probabilities.clamp(clip, 1.0)).log()


def label_unary(labels: np.ndarray, n_labels: int, gt_prob: float = 0.7, unknown: int | None = 255) -> np.ndarray:
    """Energies from a label map drawn by hand or by a network's arg max: int [H, W] with ids 0 .. K-1 -> float32 [K, H, W].

    gt_prob: how far the map is trusted; the other labels share the rest. Pixels of id `unknown` are equally likely everything.
    """
    labels = np.asarray(labels)
    _check_labels(labels, n_labels, gt_prob, 0, n_labels - 1, unknown)
    table = np.full((n_labels, n_labels + 1), (1 - gt_prob) / (n_labels - 1))
    np.fill_diagonal(table, gt_prob)
    table[:, -1] = 1 / n_labels
    index = labels if unknown is None else np.where(labels == unknown, n_labels, labels)
    return -np.log(table).astype(np.float32)[:, index]


def _check_labels(labels: np.ndarray, n_labels: int, gt_prob: float, low: int, high: int, unknown: int | None) -> None:
    if labels.dtype.kind not in "iub":
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}; probabilities go to unary_from_softmax or dense_crf")
    if n_labels < 2:
        raise ValueError(f"n_labels={n_labels}: with fewer than two labels there is nothing to decide")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob is the trust in the label map, between 0 and 1, got {gt_prob}")
    foreign = [int(v) for v in np.unique(labels) if v != unknown and not low <= v <= high]
    if foreign:
        raise ValueError(f"labels hold {foreign[0]}; with n_labels={n_labels} expected {low}..{high}" + (f" and {unknown} for unknown" if unknown is not None else ""))


def _check_probabilities(p: torch.Tensor, what: str = "probabilities") -> None:
    low, high = (float(v) for v in p.detach().aminmax()) if p.numel() else (0.0, 0.0)
    if not (low >= -1e-4 and high <= 1 + 1e-3):
        raise ValueError(f"{what} run from {low:.4g} to {high:.4g}, expected 0..1; take .softmax over the class dimension first")


def _pictures(image, p: torch.Tensor) -> torch.Tensor:
    """The image as [B, C, H, W] on the device of the probabilities [B, K, H, W]."""
    if torch.is_tensor(image):
        picture = image
    else:
        picture = torch.from_numpy(np.ascontiguousarray(image))
        picture = picture[..., None] if picture.dim() == 2 else picture
        picture = picture.movedim(-1, -3)
    picture = picture[None] if picture.dim() == 3 else picture
    if picture.dim() != 4 or len(picture) != len(p) or picture.shape[-2:] != p.shape[-2:]:
        hint = "numpy images are [H, W, C], torch images [C, H, W]; resize the scores to the image, never the image to the scores"
        raise ValueError(f"image is {list(np.shape(image))} and probabilities are {list(p.shape)}, expected {len(p)} of {p.shape[-2]} x {p.shape[-1]} pixels; {hint}")
    return picture.to(p.device)


# ---- stand-in for pydensecrf.utils ------------------------------------------------------------------------------------------------------


def unary_from_softmax(sm, scale: float | None = None, clip: float | None = 1e-5):
    """Energies [K, N] float32 of softmax scores [K, ...], clipped to `clip` .. 1. scale: trust in the scores; s mixes s P + (1 - s) / K."""
    p = sm if torch.is_tensor(sm) else torch.from_numpy(np.ascontiguousarray(sm))
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be above 0 and at most 1, got {scale}")
        p = scale * p + (1 - scale) / len(p)
    unary = energies(p, clip).flatten(1).float()
    return unary if torch.is_tensor(sm) else unary.numpy()


def unary_from_labels(labels, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Energies [K, N] float32 of a label map. zero_unsure: 0 means "unknown" and the labels are 1 .. n_labels; else they are 0 .. n_labels-1."""
    labels = np.asarray(labels)
    if not zero_unsure:
        return label_unary(labels, n_labels, gt_prob, None).reshape(n_labels, -1)
    _check_labels(labels, n_labels, gt_prob, 0, n_labels, None)
    if labels.size and labels.max() == n_labels - 1 and labels.min() == 0:
        warnings.warn(f"zero_unsure=True takes label 0 as unknown, so label {n_labels} of n_labels={n_labels} never occurs; "
                      "if 0 is a class like the others, pass zero_unsure=False", stacklevel=2)
    return label_unary(labels.astype(np.int64) - 1, n_labels, gt_prob, -1).reshape(n_labels, -1)


def compute_unary(labels, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """`unary_from_labels` of M labels by its old name, which trusts the map half; 0 means "unknown"."""
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm, GT_PROB: float = 1):
    """`unary_from_softmax` by its old name and without its clip, GT_PROB being the scale. A probability of 0 costs 87, not infinity."""
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=float(np.finfo(np.float32).tiny))  # -log tiny = 87.3


def create_pairwise_gaussian(sdims, shape) -> np.ndarray:
    """Positions / sdims of a grid of any dimension, float32 [len(shape), N]. Axes in the order of `shape`: (row, column) for an image."""
    grid = np.indices(shape, dtype=np.float32)
    return (grid / _column(sdims, len(shape), "sdims", len(shape) + 1)).reshape(len(shape), -1)


def create_pairwise_bilateral(sdims, schan, img, chdim: int = -1) -> np.ndarray:
    """Positions / sdims and channels / schan of an image of any dimension, float32 [d + C, N]. chdim: where its channels are, -1: it has none."""
    img = np.asarray(img, dtype=np.float32)
    channels = img[None] if chdim == -1 else np.moveaxis(img, chdim, 0)
    shape = channels.shape[1:]
    scaled = channels / _column(schan, len(channels), "schan", channels.ndim)
    return np.concatenate([create_pairwise_gaussian(sdims, shape), scaled.reshape(len(channels), -1)])


def _column(values, count: int, what: str, dims: int) -> np.ndarray:
    """One number or `count` of them, positive, shaped to divide an array of `dims` axes along its first."""
    column = np.broadcast_to(np.asarray(values, np.float32), (count,)) if np.ndim(values) == 0 or len(values) == count else None
    if column is None or not (column > 0).all():
        raise ValueError(f"{what} must be one positive standard deviation or {count} of them, got {values}")
    return column.reshape(-1, *[1] * (dims - 1))


# ---- stand-in for pydensecrf.densecrf ---------------------------------------------------------------------------------------------------


class KernelType(enum.IntEnum):
    """Which kernel parameters could be learned. Inference is the same for all three, here as in the C++ library."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(enum.IntEnum):
    """Which diagonal factors surround the kernel matrix."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType
MODES = {NO_NORMALIZATION: "none", NORMALIZE_BEFORE: "before", NORMALIZE_AFTER: "after", NORMALIZE_SYMMETRIC: "symmetric"}


class ConstUnary:
    """Energies [K, N]."""

    def __init__(self, u):
        self.energy = _float(u)


class LogisticUnary(ConstUnary):
    """Energies L f of a linear classifier: L [K, F], f [F, N]."""

    def __init__(self, L, f):
        self.energy = _float(L) @ _float(f)


def _float(values) -> torch.Tensor:
    return (values.detach() if torch.is_tensor(values) else torch.from_numpy(np.array(values, copy=True))).float()


class DenseCRF:
    """A fully connected CRF over `nvar` points with `nlabels` labels, with pydensecrf's methods.

    Energies may be numpy arrays or torch tensors on any device; marginals come back in the same kind, float32 [nlabels, nvar].
    method: as in `dense_crf`.
    """

    def __init__(self, nvar: int, nlabels: int, method: str = "auto"):
        self._size, self._labels, self._method = (1, int(nvar)), int(nlabels), method
        self._unary, self._numpy, self._terms, self._applied = None, True, [], None

    def setUnary(self, u: ConstUnary) -> None:
        """Energies from a `ConstUnary` or `LogisticUnary`."""
        self.setUnaryEnergy(u.energy)

    def setUnaryEnergy(self, u, f=None) -> None:
        """Energies -log p: [K, N], or [K, H, W] as well for `DenseCRF2D`; with `f` [F, N], the product u f of a linear classifier u [K, F]."""
        energy = _float(u) if f is None else _float(u) @ _float(f)
        h, w = self._size
        n = h * w
        if tuple(energy.shape) not in ((self._labels, n), (self._labels, h, w)):
            hint = ""
            if tuple(energy.shape) in ((n, self._labels), (h, w, self._labels)):
                hint = "; labels come first: transpose it"
            elif tuple(energy.shape) == (self._labels, w, h):
                hint = "; DenseCRF2D takes (width, height, labels), arrays are [height, width]"
            raise ValueError(f"unary is {list(energy.shape)}, expected [{self._labels}, {n}] (labels, points){hint}")
        self._numpy = not torch.is_tensor(f if f is not None else u)
        self._unary, self._applied = energy.reshape(1, self._labels, h, w), None

    def addPairwiseEnergy(self, features, compat=3.0, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC) -> None:
        """A Gaussian kernel exp(-|f_i - f_j|^2 / 2) over `features` [d, N], already divided by their standard deviations.

        compat: a number w (Potts, attracts), a vector [K] or a matrix [K, K] of energies (positive repels).
        """
        values = _float(features)
        h, w = self._size
        if values.dim() < 2 or values[0].numel() != h * w:
            raise ValueError(f"features are {list(values.shape)}, expected [d, {h * w}] (features, points)")
        self._add(Features(values.reshape(1, len(values), h, w)), compat, kernel, normalization)

    def _add(self, term, compat, kernel, normalization) -> None:
        if kernel not in list(KernelType):
            raise ValueError(f"kernel must be CONST_KERNEL, DIAG_KERNEL or FULL_KERNEL, got {kernel!r}")
        if normalization not in MODES:
            raise ValueError(f"normalization must be one of {', '.join(n.name for n in NormalizationType)}, got {normalization!r}")
        mode = MODES[normalization]
        if isinstance(compat, Number):
            self._terms.append(replace(term, weight=float(compat), normalization=mode))
        else:
            matrix = _float(compat)
            if tuple(matrix.shape) not in ((self._labels,), (self._labels, self._labels)):
                raise ValueError(f"compat is {list(matrix.shape)}, expected a number, a vector [{self._labels}] or a matrix [{self._labels}, {self._labels}]")
            matrix = torch.diag(matrix) if matrix.dim() == 1 else (matrix + matrix.t()) / 2
            self._terms.append(replace(term, weight=1.0, compat=matrix, normalization=mode))
        self._applied = None

    def _energies(self) -> torch.Tensor:
        if self._unary is None:
            raise ValueError("the CRF has no unary energies yet; call setUnaryEnergy(u) first")
        return self._unary

    def _kernels(self, device) -> list:
        return [replace(t, values=t.values.to(device)) if isinstance(t, Features) else t for t in self._terms]

    def _give(self, q: torch.Tensor):
        return q.numpy() if self._numpy else q

    def inference(self, niter: int):
        """Marginals [K, N] after `niter` parallel mean-field updates; the labels are their argmax over axis 0."""
        unary = self._energies()
        q = mean_field(unary, None, self._kernels(unary.device), iterations=int(niter), method=self._method)
        return self._give(q[0].reshape(self._labels, -1).contiguous())

    def startInference(self):
        """(Q, scratch, scratch): Q [K, N] is the softmax of the negative energies. The scratch arrays exist for the C++ library's sake."""
        q = self._give(torch.softmax(-self._energies()[0].reshape(self._labels, -1), 0))
        return q, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q, tmp1=None, tmp2=None) -> None:
        """One update of Q [K, N], in place."""
        q = torch.as_tensor(Q)
        new = torch.softmax(-self._energies()[0].reshape(self._labels, -1) - sum(self._pairwise(q)), 0)
        q.copy_(new)  # shares its memory with a numpy Q

    def klDivergence(self, Q) -> float:
        """Sum of Q ln Q + unary Q + Q . (pairwise energy of Q), up to the constant ln Z.

        As in the C++ library the pairwise sum carries no factor 1/2 and includes i = j, so this is not the free energy that the updates
        lower: use it to compare with pydensecrf, not to judge convergence.
        """
        q = torch.as_tensor(Q)
        unary = self._energies()[0].reshape(self._labels, -1)
        total = (q * q.clamp_min(1e-20).log()).sum(dtype=torch.float64) + (q * unary).sum(dtype=torch.float64)
        return float(total + sum((q * message).sum(dtype=torch.float64) for message in self._pairwise(q)))

    def _pairwise(self, q: torch.Tensor) -> list[torch.Tensor]:
        """The energy [K, N] that each pairwise term adds, given marginals q [K, N]."""
        if self._applied is None:
            self._applied = [self._operator(t) for t in self._kernels(q.device)]
        out = []
        for term, apply in zip(self._terms, self._applied):
            message = apply(q.t().contiguous()).t()
            out.append(-term.weight * message if term.compat is None else term.compat.to(q) @ message)
        return out

    def _operator(self, term):
        """values [N, K] -> normalised messages [N, K], prepared once."""
        h, w = self._size
        if isinstance(term, Features):
            points = term.values[0].flatten(1).t().contiguous()
        else:
            points = torch.from_numpy(create_pairwise_gaussian(term.sxy[::-1], (h, w))).t().to(self._energies().device)
        exact = self._method == "exact" or (self._method == "auto" and path_for(self._energies()) != "torch")
        if exact:
            return lambda values: gaussian_message(points[None], values[None], term.normalization, cull=9.2)[0]
        if isinstance(term, Features):
            return permutohedral.lattice_chain(points).normalized(term.normalization)
        return permutohedral.grid_chain(h, w, term.sxy, torch.float32, points.device, term.normalization)


class DenseCRF2D(DenseCRF):
    """The CRF of an image: **width first**, DenseCRF2D(w, h, nlabels), while arrays are [height, width]."""

    def __init__(self, w: int, h: int, nlabels: int, method: str = "auto"):
        super().__init__(w * h, nlabels, method)
        self._size = (int(h), int(w))

    def addPairwiseGaussian(self, sxy, compat, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC) -> None:
        """Smoothness. sxy: standard deviation in pixels, one number or (x, y). Filtered exactly, also on a CPU."""
        sxy = (float(sxy), float(sxy)) if isinstance(sxy, Number) else (float(sxy[0]), float(sxy[1]))
        self._add(Gaussian(sxy), compat, kernel, normalization)

    def addPairwiseBilateral(self, sxy, srgb, rgbim, compat, kernel=DIAG_KERNEL, normalization=NORMALIZE_SYMMETRIC) -> None:
        """Appearance. srgb: standard deviation of colour, one number or one per channel; rgbim: colours 0..255, [H, W, C]."""
        picture = torch.as_tensor(rgbim)
        h, w = self._size
        if picture.dim() != 3 or tuple(picture.shape[:2]) != (h, w):
            raise ValueError(f"rgbim is {list(picture.shape)}, expected [{h}, {w}, channels]; DenseCRF2D takes (width, height, labels)")
        channels = picture.shape[2]
        srgb = (float(srgb),) * channels if isinstance(srgb, Number) else tuple(float(s) for s in srgb)
        if len(srgb) != channels:
            raise ValueError(f"srgb has {len(srgb)} entries for an image of {channels} channels")
        check_colours(picture, srgb, "rgbim", "srgb")
        features = pixel_features(picture.movedim(-1, 0)[None], sxy, srgb)  # as `Features`, since every term may bring its own image
        self._add(Features(features.transpose(1, 2).reshape(1, -1, h, w)), compat, kernel, normalization)


# ---- python -m seglite.crf --------------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """Refine a label map, or a network's probabilities, along the edges of its photograph."""

    preset: str = "deeplab-voc"
    """published parameter values: deeplab-voc, deeplab-voc-vgg, deeplab-sample, deeplab-v1, deeplab-layer, camvid, crf-rnn, pydensecrf-readme"""
    gaussian_sxy: float | None = None
    """changes the preset's theta_gamma, pixels"""
    gaussian_weight: float | None = None
    """changes the preset's w2"""
    bilateral_sxy: float | None = None
    """changes the preset's theta_alpha, pixels"""
    bilateral_srgb: float | None = None
    """changes the preset's theta_beta, of 255"""
    bilateral_weight: float | None = None
    """changes the preset's w1"""
    iterations: int | None = None
    """changes the preset's number of updates"""
    normalization: str | None = None
    """changes the preset's normalisation: after, symmetric, before or none"""
    gt_prob: float = 0.7
    """how far a label map is trusted, between 0 and 1"""
    unknown: str = "255"
    """pixels without a label, which the others decide: an id, or black for the colour black of a palette picture"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    debug: bool = False
    """show tracebacks"""


def black_index(palette: list[int] | None, path: str) -> int:
    """The id whose colour is black."""
    colours = [tuple(palette[i : i + 3]) for i in range(0, len(palette), 3)] if palette else []
    if (0, 0, 0) not in colours:
        raise ValueError(f"{path} has no black in its palette; give unknown= the id of the pixels without a label")
    return colours.index((0, 0, 0))


def read_scores(path: str) -> torch.Tensor:
    """The probabilities [K, H, W] of a .npy file as float32. ValueError says what it holds instead."""
    scores = np.load(path)
    if scores.ndim != 3 or scores.dtype.kind not in "fiub":
        raise ValueError(f"{path} is {scores.dtype} {list(scores.shape)}, expected probabilities [K, H, W] of one image; save a label map as a PNG")
    if len(scores) > 256:
        raise ValueError(f"{path} is {list(scores.shape)}, expected [K, H, W] with at most 256 labels, which a label picture can hold")
    p = torch.from_numpy(scores.astype(np.float32))
    _check_probabilities(p, f"the scores of {path}")
    return p


def read_labels(path: str, unknown: str) -> tuple[np.ndarray, list[int], int, list[int] | None]:
    """A label picture: int64 [H, W], the ids in it, the id of pixels without a label, its palette. ValueError says why it is no label map."""
    from PIL import Image

    from seglite.config import convert

    with Image.open(path) as picture:
        mode, before, palette = picture.mode, np.array(picture), picture.getpalette()
    if before.ndim != 2 or before.dtype.kind not in "iub":
        raise ValueError(f"{path} is a {mode} picture, expected one label number per pixel (mode P, L, 1 or I); "
                         "save the label numbers, not their colours")
    nothing = black_index(palette, path) if unknown == "black" else convert(unknown, int, "unknown")
    ids = [int(v) for v in np.unique(before) if v != nothing]
    if len(ids) < 2:
        raise ValueError(f"{path} holds {len(ids)} label{'s' * (len(ids) != 1)} besides unknown={nothing}, expected at least 2: there is nothing "
                         "to decide" + (f"; if {nothing} is a label, as in a mask of 0 and 255, pass unknown=-1" if (before == nothing).any() else ""))
    foreign = [v for v in ids if not 0 <= v <= 255]
    if foreign:
        raise ValueError(f"{path} holds {foreign[0]}, expected labels 0..255 besides unknown={nothing}; "
                         f"if it marks pixels without a label, pass unknown={foreign[0]}, else renumber the labels")
    return before.astype(np.int64), ids, nothing, palette


def refine_files(photo: str, labels: str, out: str, settings: Settings) -> str:
    """What the command does; returns the sentence it prints."""
    from PIL import Image

    from seglite.data.voc import read_image
    from seglite.files import write_bytes
    from seglite.pictures import png_bytes, voc_palette
    from seglite.run import choose_device

    image = read_image(Path(photo))
    chosen = preset_of(settings.preset, **{key: getattr(settings, key) for key in (
        "gaussian_sxy", "gaussian_weight", "bilateral_sxy", "bilateral_srgb", "bilateral_weight", "iterations", "normalization")})
    if labels.endswith(".npy"):
        unary, ids, palette = energies(read_scores(labels)).numpy(), None, None
    else:
        before, ids, unknown, palette = read_labels(labels, settings.unknown)
        position = np.where(before == unknown, len(ids), np.searchsorted(ids, before))
        unary = label_unary(position, len(ids), settings.gt_prob, unknown=len(ids))
    if unary.shape[1:] != image.shape[:2]:
        raise ValueError(f"{labels} is {list(unary.shape[1:])} and {photo} is {list(image.shape[:2])} pixels (rows, columns), expected equal sizes"
                         + ("" if ids else "; scores are [K, H, W], labels first"))
    device = choose_device(settings.device)[0]
    q = mean_field(torch.from_numpy(unary)[None].to(device), torch.from_numpy(image).movedim(-1, 0)[None].to(device), chosen.kernels(),
                   iterations=chosen.iterations, normalization=chosen.normalization)[0]
    winner = q.argmax(0).cpu().numpy()
    after = (winner if ids is None else np.array(ids)[winner]).astype(np.uint8)
    written = Image.fromarray(after)
    written.putpalette(palette or voc_palette().ravel().tolist())
    write_bytes(Path(out), png_bytes(written))
    changed = "" if ids is None else f", {100 * float((after != before)[before != unknown].mean()):.1f} % of the labelled pixels changed"
    return f"{out}: {len(unary)} labels, {image.shape[1]} x {image.shape[0]} pixels{changed}" + (f"\nnote: {chosen.warning}" if chosen.warning else "")


def main(arguments: list[str]) -> int:
    from seglite import commands

    return commands.serve("seglite.crf", "photo.jpg labels.png out.png", Settings, arguments, files=3,
                          body=lambda settings, paths: print(refine_files(*paths, settings)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
