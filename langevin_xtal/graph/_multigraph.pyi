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
