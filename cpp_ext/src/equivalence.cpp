// Edges that site symmetry turns into one another.
#include <cmath>

#include "multigraph.hpp"
#include "small_matrix.hpp"

namespace langevin_xtal {

namespace {

bool is_identity(const std::int64_t* w) {
    for (int k = 0; k < 9; ++k)
        if (w[k] != (k % 4 == 0)) return false;
    return true;
}

/// Row-vector matrices [Å to Å] of the operations that leave a site in place, without identity.
void site_symmetry(const CrystalView& all, std::int64_t b, const double* x, const Mat3& inverse,
                   double close, std::vector<Mat3>& found) {
    const double* cell = all.lattice + 9 * b;
    found.clear();
    for (std::int64_t op = 0; op < all.op_count[b]; ++op) {
        const std::int64_t* w = all.rotations + 9 * (all.op_start[b] + op);
        if (is_identity(w)) continue;
        const Vec3 moved = image_of(all, all.op_start[b] + op, x);
        if (norm(times(wrapped_step(x, moved).data(), cell)) > close) continue;
        Mat3 back{};
        for (int k = 0; k < 9; ++k) back[k] = static_cast<double>(w[3 * (k % 3) + k / 3]);
        const Mat3 half = product(inverse.data(), back.data());
        found.push_back(product(half.data(), cell));
    }
}

}  // namespace

std::vector<std::int64_t> equivalent_edges(const CrystalView& crystals, const EdgeView& edges,
                                           double close) {
    std::vector<std::int64_t> first(edges.edges);
    for (std::int64_t e = 0; e < edges.edges; ++e) first[e] = e;
    std::vector<Mat3> turns;
    for (std::int64_t b = 0; b < crystals.crystals; ++b) {
        const Mat3 inverse = inverse_of(crystals.lattice + 9 * b);
        for (std::int64_t i = crystals.site_start[b]; i < crystals.site_start[b + 1]; ++i) {
            site_symmetry(crystals, b, crystals.frac + 3 * i, inverse, close, turns);
            if (turns.empty()) continue;
            const std::int64_t end = edges.start[i + 1];
            for (std::int64_t e = edges.start[i]; e < end; ++e) {
                if (first[e] != e) continue;
                for (const Mat3& turn : turns) {
                    const Vec3 v = times(edges.vec + 3 * e, turn.data());
                    // edges are ordered by target, and the first of a class comes first
                    for (std::int64_t f = e + 1; f < end && edges.target[f] == edges.target[e];
                         ++f) {
                        if (first[f] != f || edges.long_range[f] != edges.long_range[e]) continue;
                        if (std::abs(edges.dist[f] - edges.dist[e]) > close) continue;
                        const double* u = edges.vec + 3 * f;
                        if (norm(u[0] - v[0], u[1] - v[1], u[2] - v[2]) > close) continue;
                        first[f] = e;
                        break;
                    }
                }
            }
        }
    }
    return first;
}

}  // namespace langevin_xtal
