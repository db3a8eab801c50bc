"""The Predictor: a picture and expressions go in, masks at the picture's own size come out.

Letters: N expressions, Q queries, H W pixels of the original picture, h w pixels as the model reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.config import ModelConfig
from vlformer_cli.data.dataset import CANVAS_STEP
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.data.transforms import fitted_size, resize_image
from vlformer_cli.loss.matcher import REFERENT
from vlformer_cli.types import VLFormerOutput

STRIDE = 4  # pixels per cell of the mask logits
AT_ONCE = 16  # expressions in one forward: more cost memory and gain nothing


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The answer to one expression."""

    expression: str
    score: float
    """The chosen query's probability of meaning the referent."""
    mask: NDArray[np.bool_]
    """HW; empty where nothing matches."""
    cut: bool
    """The expression was longer than the model's context, and only its beginning was read."""
    matches: bool = True
    """False: the score is below the predictor's `min_score`."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """All queries of some expressions about one picture."""

    score_NQ: Tensor
    logits_NQYX: Tensor
    """On the stride-4 grid, padding included."""
    read_size: tuple[int, int]
    """Height and width that the model read the picture at."""
    size: tuple[int, int]
    """Height and width of the original picture."""

    @property
    def chosen_N(self) -> Tensor:
        """The best-scoring query of each expression."""
        return self.score_NQ.argmax(1)

    def masks(self, expression: int, queries: Tensor) -> NDArray[np.bool_]:
        """One HW mask, at the original size, for each of the given queries of one expression."""
        logits_1QYX = self.logits_NQYX[expression, queries][None].float()
        logits_1Qhw = F.interpolate(logits_1QYX, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        logits_1Qhw = logits_1Qhw[..., : self.read_size[0], : self.read_size[1]]
        return (F.interpolate(logits_1Qhw, size=self.size, mode="bilinear", align_corners=False)[0] > 0).cpu().numpy()


class Engine(Protocol):
    """What runs the network: `VLFormer`, or an exported file (`engine/engines.py`). `seen` is its own business."""

    def look(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor, /) -> Any:
        """What is needed of a picture to answer questions about it."""

    def ask(self, seen: Any, token_NT: Tensor, image_index_N: Tensor, /) -> VLFormerOutput:
        """The answers to N expressions."""
        ...


class Predictor:
    """An engine with the pre- and post-processing around it, which is the same for all."""

    def __init__(self, engine: Engine, config: ModelConfig, *, min_score: float | None = None) -> None:
        """`min_score`: where the chosen query scores less, nothing matches; None: what the model was given."""
        self.engine, self.config, self.device = engine, config, torch.device("cpu")
        self.min_score = config.min_score if min_score is None else min_score
        if isinstance(engine, nn.Module):
            self.device = next(engine.eval().parameters()).device

    @torch.inference_mode()
    def predict(self, image_HW3: NDArray[np.uint8], expressions: Sequence[str]) -> list[Segmentation]:
        """One answer for each expression; the picture (RGB, as `read_image` gives it) is looked at once."""
        seen, size = self.look(image_HW3)
        answers = []
        for first in range(0, len(expressions), AT_ONCE):
            chunk = expressions[first : first + AT_ONCE]
            candidates, is_cut = self.ask(seen, size, image_HW3.shape[:2], chunk)
            for number, (expression, query) in enumerate(zip(chunk, candidates.chosen_N, strict=True)):
                score = float(candidates.score_NQ[number, query])
                matches = score >= self.min_score
                mask_HW = candidates.masks(number, query[None])[0] if matches else np.zeros(candidates.size, np.bool_)
                answers.append(Segmentation(expression, score, mask_HW, is_cut[number], matches))
        return answers

    @torch.inference_mode()
    def look(self, image_HW3: NDArray[np.uint8]) -> tuple[Any, tuple[int, int]]:
        """What the engine keeps of the picture, and the height and width that the model read it at."""
        size = fitted_size(image_HW3.shape[0], image_HW3.shape[1], self.config.short_side, self.config.max_side)
        height, width = (-(-side // CANVAS_STEP) * CANVAS_STEP for side in size)
        canvas = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        canvas[0, :, : size[0], : size[1]] = torch.from_numpy(resize_image(image_HW3, size)).permute(2, 0, 1)
        valid = torch.zeros(1, height, width, dtype=torch.bool)
        valid[:, : size[0], : size[1]] = True
        return self.engine.look(canvas.to(self.device), valid.to(self.device)), size

    @torch.inference_mode()
    def ask(
        self, seen: Any, size: tuple[int, int], original: tuple[int, ...], expressions: Sequence[str]
    ) -> tuple[Candidates, list[bool]]:
        """All queries' answers to a few expressions, and which expressions were cut."""
        tokens, is_cut = tokenize(expressions, self.config.max_tokens)
        index = torch.zeros(len(expressions), dtype=torch.long, device=self.device)
        output = self.engine.ask(seen, tokens.to(self.device), index)
        class_logits_NQ2 = output.class_logits.float() / self.config.temperature
        class_logits_NQ2[..., REFERENT] += self.config.score_shift
        score_NQ = class_logits_NQ2.softmax(-1)[..., REFERENT]
        return Candidates(score_NQ, output.mask_logits, size, (original[0], original[1])), is_cut
