from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

class TooManyNearError(Exception): ...

def build(
    lattice: ArrayLike,
    frac: ArrayLike,
    site_start: ArrayLike,
    rotations: ArrayLike,
    translations: ArrayLike,
    op_start: ArrayLike,
    op_count: ArrayLike,
    orbit: ArrayLike,
    *,
    cutoff: float,
    k_min: int,
    k_max: int,
    all_pairs: bool,
    coincidence: float,
    identical: float,
    margin: float,
    max_near: float,
    threads: int,
) -> dict[str, NDArray[Any]]: ...
def equivalent_edges(
    lattice: ArrayLike,
    frac: ArrayLike,
    site_start: ArrayLike,
    rotations: ArrayLike,
    translations: ArrayLike,
    op_start: ArrayLike,
    op_count: ArrayLike,
    orbit: ArrayLike,
    *,
    edge_index: ArrayLike,
    edge_vec: ArrayLike,
    edge_dist: ArrayLike,
    edge_is_long_range: ArrayLike,
    edge_start: ArrayLike,
    close: float,
) -> NDArray[np.int64]: ...
def distinct_images(
    lattice: ArrayLike,
    frac: ArrayLike,
    site_start: ArrayLike,
    rotations: ArrayLike,
    translations: ArrayLike,
    op_start: ArrayLike,
    op_count: ArrayLike,
    orbit: ArrayLike,
    *,
    identical: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def snap_sites(
    lattice: ArrayLike,
    frac: ArrayLike,
    site_start: ArrayLike,
    rotations: ArrayLike,
    translations: ArrayLike,
    op_start: ArrayLike,
    op_count: ArrayLike,
    orbit: ArrayLike,
    *,
    inverse: ArrayLike,
    fixed: ArrayLike,
    radius: ArrayLike,
    identical: float,
) -> dict[str, NDArray[Any]]: ...
def orbit_noise(
    lattice: ArrayLike,
    frac: ArrayLike,
    site_start: ArrayLike,
    rotations: ArrayLike,
    translations: ArrayLike,
    op_start: ArrayLike,
    op_count: ArrayLike,
    orbit: ArrayLike,
    *,
    noised: ArrayLike,
    sigma: ArrayLike,
    confined: ArrayLike,
    projector: ArrayLike,
    axis_images: int,
    box_images: int,
    identical: float,
    unreached: float,
) -> NDArray[np.float64]: ...
def lay_out_triplets(
    source: ArrayLike,
    target: ArrayLike,
    vec: ArrayLike,
    turned: ArrayLike,
    dist: ArrayLike,
    sends: ArrayLike,
    first_edge: ArrayLike,
    message: ArrayLike,
    *,
    sites: int,
    row: int,
    identical: float,
    no_length: float,
) -> dict[str, NDArray[Any]]: ...

class Plan:
    def __init__(
        self,
        source: ArrayLike,
        target: ArrayLike,
        sends: ArrayLike,
        site_crystal: ArrayLike,
        out_message: ArrayLike,
        row_of_message: ArrayLike,
        cosine: ArrayLike,
        is_triplet: ArrayLike,
        *,
        crystals: int,
        orders: int,
    ) -> None: ...
    def saved_size(self, sizes: list[int]) -> int: ...

def network_forward(
    plan: Plan,
    sizes: list[int],
    weights: list[NDArray[Any]],
    features: NDArray[Any],
    angular: NDArray[Any],
    weight: NDArray[Any],
    of_source: NDArray[Any],
    of_target: NDArray[Any],
    noise: NDArray[Any],
    out: NDArray[Any],
    saved: NDArray[Any],
    threads: int,
) -> None: ...
def network_backward(
    plan: Plan,
    sizes: list[int],
    weights: list[NDArray[Any]],
    features: NDArray[Any],
    angular: NDArray[Any],
    weight: NDArray[Any],
    of_source: NDArray[Any],
    of_target: NDArray[Any],
    noise: NDArray[Any],
    saved: NDArray[Any],
    out_gradient: NDArray[Any],
    gradients: list[NDArray[Any]],
    threads: int,
) -> None: ...
def network_instructions() -> str: ...
