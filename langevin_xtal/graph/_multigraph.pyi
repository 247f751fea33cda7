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
) -> dict[str, NDArray]: ...
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
