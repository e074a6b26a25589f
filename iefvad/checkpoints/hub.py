"""`IEFVAD`, `Baseline` and `NormalOnly`: networks with provenance, loading, saving and the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor

from iefvad.checkpoints.calibration import copy_calibration
from iefvad.checkpoints.card import BASELINE_CARD, MODEL_CARD, NORMAL_CARD, facts
from iefvad.checkpoints.files import Saved, read_model, save_folder
from iefvad.checkpoints.pretrained import find_pretrained
from iefvad.checkpoints.released import read_released
from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.config import ModelConfig, Noise
from iefvad.model.network import Network
from iefvad.model.normality.config import NormalityConfig
from iefvad.model.normality.network import NormalityNetwork
from iefvad.utils.errors import UserError
from iefvad.utils.files import storage_error


class _Trained:
    """What a trained model is beside its network. A base of classes that are a network and a `PyTorchModelHubMixin`.

    Attributes:
        provenance: What is known of a trained model, JSON values, empty for a fresh one: "encoder" (settings of the
            features that it was trained on), "threshold", "epoch", "seed", "chunk", "test_crops", "method". It is
            saved and loaded with the weights.
        folder: The folder that it was loaded from; None elsewhere.
    """

    provenance: dict[str, Any]
    folder: Path | None

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write config.json, model.safetensors and a model card (README.md, unless there is one) into a folder.

        The calibration of these weights, where the folder that they were loaded from has one, goes with them. Two
        calls write the same bytes.

        Args:
            save_directory: The folder; it is created.
            options: Those of the mixin, such as `push_to_hub=True, repo_id="owner/name"`.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            return super().save_pretrained(Path(save_directory), **options)  # type: ignore[misc,no-any-return]
        except OSError as error:
            raise storage_error(error, Path(save_directory)) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, Trained)
        save_folder(save_directory, self, self.provenance)
        if self.folder is not None:
            copy_calibration(self, self.folder, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card: what the network is, how to load it, the paper."""
        assert isinstance(self, Trained)
        known = {"facts": facts(self.config, self.provenance), **kwargs}
        return super().generate_model_card(*args, **known)  # type: ignore[misc,no-any-return]


class IEFVAD(
    _Trained,
    Network,
    PyTorchModelHubMixin,
    library_name="iefvad",
    tags=["arxiv:2505.02393", "video-anomaly-detection"],
    paper_url="https://arxiv.org/abs/2505.02393",
    model_card_template=MODEL_CARD,
):
    """The IEF-VAD network as a model that is loaded, saved and shared. `forward` is that of `Network`.

    `push_to_hub` is the mixin's.

    Attributes:
        provenance: What is known of a trained model, JSON values, empty for a fresh one: "encoder" (settings of the
            features that it was trained on), "threshold", "epoch", "seed", "chunk", "test_crops", "method". It is
            saved and loaded with the weights.
        folder: The folder that it was loaded from; None elsewhere.
    """

    def __init__(self, config: ModelConfig, *, backend: str = "auto") -> None:
        super().__init__(config, backend=backend)
        self.provenance: dict[str, Any] = {}
        self.folder: Path | None = None

    @classmethod
    def from_saved(cls, saved: Saved, *, backend: str = "auto", device: str | torch.device = "cpu") -> IEFVAD:
        """Make the model that files describe, in evaluation mode. Raises as `Saved.build`, and for a baseline."""
        if not isinstance(saved.config, ModelConfig):
            what = (
                f"the baseline {saved.config.model}"
                if isinstance(saved.config, BaselineConfig)
                else "a detector made from normal footage"
            )
            raise UserError(
                f"{saved.path} contains {what}, not an IEF-VAD model: load it with iefvad.checkpoints.hub.load_trained."
            )
        model = saved.build(cls, backend=backend, device=device)
        model.provenance, model.folder = saved.provenance, saved.folder
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> IEFVAD:
        """Load a trained model; all options and errors are those of `load_pretrained`.

        A detector that was made from normal footage comes as a `NormalOnly`, which is called and saved alike.
        """
        saved = find_pretrained(pretrained_model_name_or_path, **options)
        if isinstance(saved.config, NormalityConfig):
            return cast(IEFVAD, NormalOnly.from_saved(saved, backend=backend, device=device))
        return cls.from_saved(saved, backend=backend, device=device)


class Baseline(
    _Trained,
    BaselineNetwork,
    PyTorchModelHubMixin,
    library_name="iefvad",
    tags=["video-anomaly-detection"],
    model_card_template=BASELINE_CARD,
):
    """A baseline as a model that is loaded by `load_trained`, saved and shared. Attributes as those of `IEFVAD`."""

    def __init__(self, config: BaselineConfig, *, backend: str = "auto") -> None:
        super().__init__(config, backend=backend)
        self.provenance: dict[str, Any] = {}
        self.folder: Path | None = None

    @classmethod
    def from_saved(cls, saved: Saved, *, backend: str = "auto", device: str | torch.device = "cpu") -> Baseline:
        """Make the model that files describe, in evaluation mode. Raises as `Saved.build`."""
        model = saved.build(cls, backend=backend, device=device)
        model.provenance, model.folder = saved.provenance, saved.folder
        return model


class NormalOnly(
    _Trained,
    NormalityNetwork,
    PyTorchModelHubMixin,
    library_name="iefvad",
    tags=["video-anomaly-detection"],
    model_card_template=NORMAL_CARD,
):
    """A detector made from normal footage alone, as a model that is loaded, saved and shared.

    `iefvad train --normal-only` makes it. Attributes are those of `IEFVAD`; the provenance also has "normal_only", what
    is known of the footage.
    """

    def __init__(self, config: NormalityConfig, *, backend: str = "auto") -> None:
        super().__init__(config, backend=backend)
        self.provenance: dict[str, Any] = {}
        self.folder: Path | None = None

    @classmethod
    def from_saved(cls, saved: Saved, *, backend: str = "auto", device: str | torch.device = "cpu") -> NormalOnly:
        """Make the model that files describe, in evaluation mode. Raises as `Saved.build`."""
        model = saved.build(cls, backend=backend, device=device)
        model.provenance, model.folder = saved.provenance, saved.folder
        return model


Trained: TypeAlias = IEFVAD | Baseline | NormalOnly
"""Every kind of trained model."""


def _trained(saved: Saved, backend: str, device: str | torch.device) -> Trained:
    if isinstance(saved.config, NormalityConfig):
        return NormalOnly.from_saved(saved, backend=backend, device=device)
    kind = Baseline if isinstance(saved.config, BaselineConfig) else IEFVAD
    return kind.from_saved(saved, backend=backend, device=device)


def load_trained(
    source: str | os.PathLike[str], *, backend: str = "auto", device: str | torch.device = "cpu", **options: Any
) -> Trained:
    """Load a trained IEF-VAD model, a baseline or a `NormalOnly`. Args and errors as `load_pretrained`."""
    return _trained(find_pretrained(source, **options), backend, device)


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    noise: Noise = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> IEFVAD:
    """Load a trained model in evaluation mode, with its `provenance`. No pickled file is opened.

    Args:
        source: A run folder (its main checkpoint), a folder by `save_pretrained`, a .safetensors file (this
            package's, or a released IEF-VAD model after `iefvad convert`), or, where nothing of that name exists,
            `owner/name` on the Hugging Face hub.
        backend: Goes to every operator of `ief_kernels`.
        device: Where the weights go.
        noise: Noise model of a released model. Released models do not record it, nor the next three.
        nu: Degrees of freedom ν of a released model.
        attenuation: Attenuation λ of a released model's refinement.
        heads: Attention heads of a released model.
        revision: Branch, tag or commit on the hub.
        token: Access token of the hub.
        cache_dir: Cache of the hub's files.
        force_download: Download again what is in the cache.
        local_files_only: Use the cache and no network.

    Raises:
        UserError: the model is missing, damaged, pickled, of another kind, or cannot be downloaded.
    """
    return IEFVAD.from_pretrained(
        source,
        backend=backend,
        device=device,
        noise=noise,
        nu=nu,
        attenuation=attenuation,
        heads=heads,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
    )


def load_released(
    state_dict: Mapping[str, Tensor],
    *,
    noise: Noise = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
    backend: str = "auto",
) -> IEFVAD:
    """Make the model of a released checkpoint: same outputs as the released code to 1e-5.

    Args:
        state_dict: Tensors by their released names (`docs/specification.md#released-checkpoints`).
        noise: Noise model; not in a checkpoint, like the three that follow, which default to the paper's values.
        nu: Degrees of freedom ν of the Student-t.
        attenuation: Attenuation λ of the refinement.
        heads: Attention heads.
        backend: Goes to every operator of `ief_kernels`.

    Raises:
        UserError: tensors are missing, unexpected or of another shape, named in the message, or the heads do not fit.
    """
    saved = read_released(state_dict, noise=noise, nu=nu, attenuation=attenuation, heads=heads)
    return IEFVAD.from_saved(saved, backend=backend)


def load_model(path: Path, *, backend: str = "auto", device: str | torch.device = "cpu") -> Trained:
    """Load one file that `save_model` wrote, in evaluation mode, with its provenance.

    Raises:
        UserError: the file is missing, damaged or of another kind; missing, unexpected and misshapen tensors are named.
    """
    return _trained(read_model(path), backend, device)
