"""Evaluate a run folder, a saved model or a released checkpoint: scores, metrics, pages."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from iefvad.checkpoints.hub import IEFVAD, NormalOnly, Trained, load_model, load_trained
from iefvad.checkpoints.pretrained import RUN_CONFIG, is_released_file
from iefvad.data.datasets import load_lists
from iefvad.evaluation.config import EvaluateConfig
from iefvad.features.density import add_density
from iefvad.features.packed import is_packed
from iefvad.features.store import is_store
from iefvad.features.videos import Benchmark
from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.normality.config import CAVEAT, NormalityConfig
from iefvad.scoring.choices import Damage
from iefvad.scoring.robustness import explain, over_seeds, robustness, robustness_table
from iefvad.scoring.scorer import check_encoder, crop_notes, density_scores, score_videos, tested_crops
from iefvad.scoring.tables import table
from iefvad.training.networks import model_config
from iefvad.training.normality import facts_of, notes_of
from iefvad.training.results import Results, Subject, finish, write_results
from iefvad.training.run import NORMAL_ONLY, Run, Variant, baseline_name
from iefvad.training.settings import Settings, TrainConfig
from iefvad.training.sources import load_benchmark, streams_of
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable
from iefvad.utils.options import checked
from iefvad.utils.text import readable

DATA = ("features", "test_list", "annotations", "gt", "image_folder", "event_folder")
RELEASED = ("noise", "nu", "attenuation", "heads")


def evaluate(source: str, config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a run folder, a saved model's folder or a .safetensors file, and write the results as `training` does.

    Args:
        source: The run folder, the folder or the file.
        config: Options.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: something cannot be loaded, or model and features do not fit.
    """
    path = Path(source)
    checked(config)
    if path.exists() and not (path / "config.yaml").is_file():
        return evaluate_model(path, config)
    return evaluate_run(path, config)


def evaluate_run(path: str | Path, config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate all models of a run folder. Args, results and errors as `evaluate`."""
    run = Run.open(path)
    _refuse_released(config, run.path)
    trained = run.config
    require_writable(Path(config.out) if config.out else run.path)
    overrides = {name: value for name in (*DATA, "test_crops") if (value := getattr(config, name)) is not None}
    if config.features is not None and _is_any_store(config.features):
        # A store has its own lists and truth; those of the run belong to other files.
        own = dict.fromkeys(("train_list", "test_list", "annotations", "gt"))
        overrides = own | overrides
    run.config = replace(run.config, device=config.device, verify=config.verify, **overrides)
    device = resolve_device(config.device)
    benchmark = _test_data(run.config)
    crops, chunk = run.config.test_crops, run.config.max_segments
    benchmark.notes += crop_notes(benchmark.test, crops)
    results = Results()
    used: dict[str, int | None] = {}
    notes: list[str] = []
    damaged: dict[int, list[dict[str, Any]]] = {}
    for seed in run.config.seeds:
        for variant in run.variants:
            backend = "auto" if run.config.fused else "reference"
            model = load_model(run.checkpoint(variant, seed), backend=backend, device=device)
            _check_agreement(run, trained, variant, seed, model)
            _check_fit(model, benchmark)
            what = f"test {variant.name} (seed {seed})"
            scores = score_videos(model, benchmark.test, crops=crops, chunk=chunk, progress=what)
            results.add(variant.name, seed, scores, model, **_chosen(model))
            if isinstance(model, NormalOnly):
                facts = results.facts[variant.name] = facts_of(model, scores)
                notes = notes or notes_of(model, facts)
            used = used or {key: model.provenance.get(key) for key in ("train_videos", "held_out_videos")}
            if _damages(config, model) and variant == run.variants[0] and variant.modality == "fusion":
                damaged[seed] = _robustness(config, model, benchmark, crops, chunk, run.config.robustness)
    _add_density(results, run.config.seeds[0], benchmark)
    if config.out is not None:
        run = replace(run, config=replace(run.config, out=config.out))
        run.path = run.config.run_dir
    return _shown(finish(run, benchmark, results, used=used, robustness=over_seeds(damaged) or None, notes=notes))


def evaluate_model(path: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one model: a folder by `save_pretrained` or a .safetensors file. Results and errors as `evaluate`."""
    if path.is_file() and config.out is None:
        raise UserError(f"{path} is a file: give the folder of the results by --out.")
    require_writable(Path(config.out or path))
    if path.is_file() and is_released_file(path):
        released = {name: value for name in RELEASED if (value := getattr(config, name)) is not None}
    else:
        _refuse_released(config, path)
        released = {}
    model = load_trained(path, device=resolve_device(config.device), **released)
    if config.features is None and config.test_list is None:
        raise UserError(
            f"{path} does not say what to evaluate on: give --features STORE, or --features ROOT with --test-list"
            " and --gt."
        )
    data = {name: value for name in DATA if (value := getattr(config, name)) is not None}
    benchmark = _test_data(TrainConfig(**data, verify=config.verify, modality=model.config.modality))
    if getattr(model.config, "density_prior", 0):
        add_density(benchmark)
    _check_fit(model, benchmark)
    known = model.provenance
    method = known.get("method", "released" if model.config.released else "unknown")
    crops, chunk = config.test_crops or known.get("test_crops", "5"), known.get("chunk", 256)
    benchmark.notes += crop_notes(benchmark.test, crops)
    _describe(path, model, method, benchmark)
    seed = known.get("seed", 0)
    name: str = model.config.modality
    fused = name == "fusion"
    notes: list[str] = []
    if isinstance(model, NormalOnly):
        name = baseline_name(NORMAL_ONLY, name)
    elif isinstance(model.config, BaselineConfig):
        name = baseline_name(model.config.model, name)
    results = Results()
    scores = score_videos(model, benchmark.test, crops=crops, chunk=chunk, progress=f"test {name}")
    results.add(name, seed, scores, model, **_chosen(model))
    if isinstance(model, NormalOnly):
        facts = results.facts[name] = facts_of(model, scores)
        notes = [CAVEAT, *notes_of(model, facts)]
    damaged = {}
    if _damages(config, model) and fused:
        usual: Damage = "segments" if known.get("protocol") == "released" else "features"
        damaged[seed] = _robustness(config, model, benchmark, crops, chunk, usual)
    _add_density(results, seed, benchmark)
    given = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
    subject = Subject(
        path=Path(config.out or path),
        primary=name,
        title="IEF-VAD" if isinstance(model, IEFVAD) else method,
        summary={
            "source": str(path),
            "method": method,
            "test_crops": tested_crops(benchmark.test, crops),
            "chunk": chunk,
            "seeds": [seed],
        },
        settings={"model": dataclasses.asdict(model.config), "evaluation": given, "provenance": known},
        command=_command(path, config),
        notes=notes,
        lead=CAVEAT if isinstance(model, NormalOnly) else "",
        device=resolve_device(config.device),
    )
    return _shown(write_results(subject, benchmark, results, robustness=over_seeds(damaged) or None))


def _test_data(config: TrainConfig) -> Benchmark:
    """Load the data of a configuration. Of the field's lists, the test list is enough."""
    if (
        config.test_list is None
        or config.train_list is not None
        or (config.features and _is_any_store(config.features))
    ):
        return load_benchmark(config)
    truth = config.gt or config.annotations
    if truth is None:
        raise UserError("the truth of the test videos is missing: give --gt gt.npy, or --annotations.")
    return load_lists(
        None,
        config.test_list,
        truth,
        features=config.features,
        event_folder=config.event_folder,
        image_folder=config.image_folder,
        nan=config.nan,
        modality=streams_of(config),
    )


def _damages(config: EvaluateConfig, model: Trained) -> bool:
    """Whether damage is measured: a detector from normal footage finds all damage unusual, and its weights are fixed.

    Raises:
        UserError: it was asked for such a detector.
    """
    if isinstance(model, NormalOnly) and config.robustness not in (True, False):
        raise UserError(
            f"--robustness {config.robustness} has no meaning for a detector made from normal footage: leave it out."
        )
    return bool(config.robustness) and not isinstance(model, NormalOnly)


def _robustness(
    config: EvaluateConfig, model: Trained, benchmark: Benchmark, crops: str, chunk: int, usual: Damage
) -> list[dict[str, Any]]:
    assert not isinstance(model, NormalOnly)
    return robustness(
        model,
        benchmark.test,
        crops=crops,
        chunk=chunk,
        ratios=config.ratios,
        draws=config.draws,
        damage=usual if isinstance(config.robustness, bool) else config.robustness,
        mask=config.mask,
    )


def _is_any_store(path: str | Path) -> bool:
    return is_packed(path) or is_store(path)


def _refuse_released(config: EvaluateConfig, path: Path) -> None:
    given = [f"--{name}" for name in RELEASED if getattr(config, name) is not None]
    if given:
        raise UserError(
            f"{', '.join(given)}: {path} records these itself; they are for released checkpoints, which do not."
        )


def _check_agreement(run: Run, trained: Settings, variant: Variant, seed: int, model: Trained) -> None:
    """Refuse a run whose config.yaml (`trained`) describes another network than its checkpoint."""
    applied = variant.apply(trained)
    saved = dataclasses.asdict(model.config)
    described: dict[str, Any]
    if trained.normal_only:
        described = {"normality": trained.density, "modality": variant.modality}
    else:
        described = dataclasses.asdict(model_config(applied, model.config.dim, variant.modality))
    # What decides how the network is tested is in both as well; earlier versions recorded less.
    also: dict[str, Any] = {
        "chunk": trained.max_segments,
        "test_crops": trained.test_crops,
        "protocol": trained.protocol,
        "seed": seed,
    }
    also |= {"method": applied.method} if trained.model == "ief-vad" and not trained.normal_only else {}
    described |= {name: value for name, value in also.items() if name in model.provenance}
    saved |= {name: value for name, value in model.provenance.items() if name in also}
    differing = [name for name in described if described[name] != saved.get(name)]
    if differing:
        changes = ", ".join(f"{name} {described[name]} and {saved.get(name)}" for name in differing)
        raise UserError(
            f"{run.path / RUN_CONFIG} and {run.checkpoint(variant, seed).name} describe different networks ({changes}):"
            " one of them was changed. Restore it, or evaluate the checkpoint alone."
        )


def _check_fit(model: Trained, benchmark: Benchmark) -> None:
    if benchmark.dim != model.config.dim:
        raise UserError(
            f"the features are {benchmark.dim} wide, and the model takes {model.config.dim}: evaluate it on features of"
            " the encoders that it was trained with."
        )
    check_encoder(model.provenance.get("encoder") or {}, benchmark.settings, "the features")


def _describe(path: Path, model: Trained, method: str, benchmark: Benchmark) -> None:
    config, videos = model.config, benchmark.test
    abnormal, segments = sum(bool(video.classes) for video in videos), sum(video.segments for video in videos)
    if isinstance(config, NormalityConfig):
        print(f"{readable(path)}: {NORMAL_ONLY}, density {config.normality}, {config.dim} wide")
    elif isinstance(config, BaselineConfig):
        print(f"{readable(path)}: model {config.model}, {config.dim} wide")
    else:
        print(
            f"{readable(path)}: method {readable(method)}, {config.dim} wide, {config.layers} attention layers,"
            f" {config.refine_steps} refinement steps"
        )
    print(f"{readable(benchmark.name)}: test {len(videos)} videos ({abnormal} abnormal, {segments} segments)")
    for note in benchmark.notes:
        print(f"note: {readable(note)}")


def _chosen(model: Trained) -> dict[str, Any]:
    """Epoch and threshold of a saved model, for `Results.add`."""
    return {key: model.provenance.get(key) for key in ("epoch", "threshold")}


def _add_density(results: Results, seed: int, benchmark: Benchmark) -> None:
    density = density_scores(benchmark.test)
    if density is not None:
        results.add("event density", seed, density)


def _shown(document: dict[str, Any]) -> dict[str, Any]:
    if "robustness" in document:
        rows = document["robustness"]
        print(f"\nrobustness to damage of one modality (Appendix H). {explain(rows)}\n{table(robustness_table(rows))}")
        for found in document["direction"].values():
            print(found["text"])
    return document


def _command(path: Path, config: EvaluateConfig) -> str:
    """The command line of this evaluation, without default values."""
    words = ["iefvad", "evaluate", str(path)]
    for field in dataclasses.fields(config):
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (value := getattr(config, field.name)) != usual:
            values = value if isinstance(value, list) else [str(value).lower() if value is False else value]
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)
