// Sites near special positions, and the noise of their orbits, on plain arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "multigraph.hpp"

namespace langevin_xtal {

/// What snapping needs of every operation, borrowed (Operations in Python).
struct OperationView {
    const double* inverse = nullptr;  // (O, 3, 3) group inverse of W - I
    const double* fixed = nullptr;    // (O, 3, 3) projector onto the vectors W leaves fixed
};

/// Sites moved to the special positions they surround (Snapped in Python).
struct SnappedSites {
    std::vector<double> frac;                    // (A, 3)
    std::vector<double> displacement;            // (A, 3) [Å]
    std::vector<double> projector;               // (A, 3, 3) for row vectors
    std::vector<std::int64_t> stabiliser_order;  // (A,)
};

/// Moves every site to the most special position within its radius (A,) [Å]; without radii it only
/// removes rounding. Points within `identical` [Å] are the same.
SnappedSites snap_sites(const CrystalView& crystals, const OperationView& operations,
                        const double* radius, double identical);

/// Noised sites of clean crystals, borrowed.
struct NoisedView {
    const double* frac = nullptr;            // (A, 3)
    const double* sigma = nullptr;           // (B,) [Å]
    const std::uint8_t* confined = nullptr;  // (A,)
    const double* projector = nullptr;       // (A, 3, 3) for row vectors
    std::int64_t axis_images = 4, box_images = 2;
    double identical = 1e-3;   // [Å]
    double unreached = -1e30;  // log weight of an image that noise cannot reach
};

/// (A, 3) responsibility-weighted noise of every site, in units of sigma.
std::vector<double> orbit_noise(const CrystalView& clean, const NoisedView& noised);

}  // namespace langevin_xtal
