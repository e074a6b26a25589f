"""What `docs/specification.md#not-finite` says, as checks that hold for every backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ief_kernels import fusion_and_terms, kalman_scan, low_rank_fusion, refine

BAD = (math.nan, math.inf, -math.inf)
STEPS, DIM, LANE = 11, 3, 1
LENGTHS = torch.tensor([STEPS, 9])


def scan(tensors: dict[str, Tensor], carried: bool, nu: float | None, backend: str) -> dict[str, Tensor]:
    """Run the scan on x, var, q, s and p of `scan_inputs`."""
    state = (tensors["s"], tensors["p"]) if carried else None
    options: dict[str, Any] = {"process_noise": tensors["q"], "initial_state": state, "nu": nu, "lengths": LENGTHS}
    found = kalman_scan(tensors["x"], tensors["var"], backend=backend, **options)
    return {"mean": found.mean, "var": found.var, "gain": found.gain, "s": found.state[0], "p": found.state[1]}


def scan_inputs() -> dict[str, Tensor]:
    """Return finite inputs with NaN in the padding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, STEPS, DIM, generator=generator)
    var = torch.rand(2, STEPS, DIM, generator=generator) + 0.2
    x[1, 9:], var[1, 9:] = math.nan, math.inf
    s, p = torch.randn(2, DIM, generator=generator), torch.rand(2, DIM, generator=generator) + 0.2
    return {"x": x, "var": var, "q": torch.rand(DIM, generator=generator), "s": s, "p": p}


def check_scan(backend: str, *, carried: bool, nu: float | None) -> None:
    """Every output that depends on a value that is not finite is not finite, and no other output changes."""
    clean = scan(scan_inputs(), carried, nu, backend)
    assert all(value.isfinite().all() for value in clean.values()), "the padding leaks"
    fields = ("mean", "var", "gain")
    # The first, one at the start of a chunk of four, one within, and the last.
    places = [("x", t) for t in (0, 4, 6, 8)] + [("var", t) for t in (0, 4, 6, 8)] + [("q", 0)]
    places += [("s", 0), ("p", 0)] if carried else []
    for name, t in places:
        for bad in BAD if name != "q" else BAD[:2]:  # −∞ is negative, and refused
            tensors = scan_inputs()
            at = {"x": (1, t, LANE), "var": (1, t, LANE), "q": (LANE,), "s": (1, LANE), "p": (1, LANE)}[name]
            tensors[name][at] = bad
            got = scan(tensors, carried, nu, backend)
            touched = torch.zeros(2, STEPS, DIM, dtype=torch.bool)
            sequences = slice(0, 2) if name == "q" else slice(1, 2)
            touched[sequences, t:, LANE] = True
            case = f"{name}[{t}] = {bad}, carried {carried}, nu {nu}, {backend}"
            # In the plain update, variance and gain do not depend on x and s.
            hit = fields if nu is not None or name not in ("x", "s") else ("mean",)
            for field in fields:
                # Without a state the first step copies x and var: nothing else enters it, and its gain is 1.
                begin = t
                if not carried and t == 0 and {"x": "mean", "var": "var"}.get(name) != field:
                    begin = 1
                for row in range(2):
                    end = int(LENGTHS[row])
                    own = touched[row, :, LANE]
                    if field in hit and bool(own.any()):
                        assert not got[field][row, begin:end, LANE].isfinite().any(), f"{case}: {field} hides it"
                        assert torch.equal(got[field][row, :begin], clean[field][row, :begin]), (
                            f"{case}: {field} before"
                        )
                        assert (got[field][row, end:] == 0).all(), f"{case}: {field} in the padding"
                        others = [lane for lane in range(DIM) if lane != LANE]
                        assert torch.equal(got[field][row][:, others], clean[field][row][:, others]), f"{case}: {field}"
                    else:
                        assert torch.equal(got[field][row], clean[field][row]), f"{case}: {field} changed"
            for field in ("s", "p") if "var" in hit else ("s",):
                assert not got[field][1, LANE].isfinite(), f"{case}: the state hides it"


def check_fusion(backend: str) -> None:
    """A bad mean or log-variance shows in the outputs of its element, and in the loss terms."""

    def run(bad: float | None = None, which: int = 0, row: int = 0) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(2, STEPS, DIM, generator=generator) for _ in range(4)]
        for tensor in tensors:
            tensor[1, 9:] = math.nan
        if bad is not None:
            tensors[which][1, row, LANE] = bad
        return fusion_and_terms(*tensors, lengths=LENGTHS, backend=backend)

    clean = run()
    assert all(value.isfinite().all() for group in clean for value in group), "the padding leaks"
    element = torch.zeros(2, STEPS, DIM, dtype=torch.bool)
    element[1, 5, LANE] = True
    for which, (name, own) in enumerate([("mu", "img"), ("logvar", "img"), ("mu", "evt"), ("logvar", "evt")]):
        for bad in BAD:
            fused, terms = run(bad, which, 5)
            case = f"{name}_{own} = {bad}, {backend}"
            hit = {"mean"} if name == "mu" else {"mean", "var", "w_img", "w_evt"}
            if name == "logvar" and bad == math.inf:
                hit.remove("var")  # it saturates
            if name == "logvar" and bad == -math.inf:
                hit = set()  # a variance of 0
            for field, value in fused._asdict().items():
                if field in hit:
                    assert not value[element].isfinite().any(), f"{case}: {field} hides it"
                assert value[~element].isfinite().all(), f"{case}: {field} spreads it"
            lost = {f"kl_{own}", "cosine", "norm"} if name == "mu" else {f"kl_{own}"}
            for field, value in terms._asdict().items():
                assert bool(value.isfinite()) == (field not in lost), f"{case}: term {field} is {value}"


def check_low_rank_fusion(backend: str) -> None:
    """A bad mean or log-variance shows in all dimensions of its position, and in no other position."""

    def run(bad: float | None = None, which: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(2, STEPS, DIM, generator=generator) for _ in range(4)]
        factors = [torch.randn(DIM, 2, generator=generator) for _ in range(2)]
        for tensor in tensors:
            tensor[1, 9:] = math.nan
        if bad is not None:
            tensors[which][1, 5, LANE] = bad
        return low_rank_fusion(*tensors, *factors, lengths=LENGTHS, backend=backend)._asdict()

    clean = run()
    assert all(value.isfinite().all() for value in clean.values()), "the padding leaks"
    position = torch.zeros(2, STEPS, dtype=torch.bool)
    position[1, 5] = True
    for which, name in enumerate(("mu_img", "logvar_img", "mu_evt", "logvar_evt")):
        for bad in BAD:
            case = f"{name} = {bad}, {backend}"
            hit = {"mean"} if which % 2 == 0 else {"mean", "var", "w_img", "w_evt"}
            if which % 2 and bad == -math.inf:
                hit = set()  # a variance of 0
            for field, value in run(bad, which).items():
                assert value[position].isfinite().any() == (field not in hit), f"{case}: {field} hides it"
                assert torch.equal(value[~position], clean[field][~position]), f"{case}: {field} spreads it"


def check_refine(backend: str) -> None:
    """A bad value stays in its row. NaN takes the whole row."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 16, 8), (2, 16), (2, 8, 16), (2, 8))
    weights = [torch.randn(shape, generator=generator) * 0.2 for shape in shapes]
    z = torch.randn(5, 8, generator=generator)
    clean = refine(z, *weights, backend=backend)
    others = [0, 1, 2, 4]
    for bad in BAD:
        poisoned = z.clone()
        poisoned[3, 4] = bad
        got = refine(poisoned, *weights, backend=backend)
        assert torch.equal(got[others], clean[others])
        assert not got[3, 4].isfinite() and (not math.isnan(bad) or got[3].isnan().all())
