// Edges that site symmetry turns into one another.
#include <array>
#include <cmath>

#include "lattice_search.hpp"
#include "multigraph.hpp"

namespace langevin_xtal {

namespace {

using Mat3 = std::array<double, 9>;

/// Rows of the inverse, so that a row vector v [Å] has fractions v · inverse.
Mat3 inverse_of(const double* m) {
    Mat3 out{};
    const double det = m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6]) +
                       m[2] * (m[3] * m[7] - m[4] * m[6]);
    for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 3; ++c) {
            const int a = (c + 1) % 3, b = (c + 2) % 3, p = (r + 1) % 3, q = (r + 2) % 3;
            out[3 * r + c] = (m[3 * a + p] * m[3 * b + q] - m[3 * a + q] * m[3 * b + p]) / det;
        }
    return out;
}

Vec3 times(const double* row, const double* matrix) {
    Vec3 out{};
    for (int c = 0; c < 3; ++c)
        out[c] = row[0] * matrix[c] + row[1] * matrix[3 + c] + row[2] * matrix[6 + c];
    return out;
}

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
        const double* t = all.translations + 3 * (all.op_start[b] + op);
        Vec3 moved{};
        for (int r = 0; r < 3; ++r) {
            moved[r] = t[r] - x[r];
            for (int c = 0; c < 3; ++c) moved[r] += static_cast<double>(w[3 * r + c]) * x[c];
            moved[r] -= std::round(moved[r]);
        }
        const Vec3 step = times(moved.data(), cell);
        if (norm(step[0], step[1], step[2]) > close) continue;
        double transposed[9];
        for (int r = 0; r < 3; ++r)
            for (int c = 0; c < 3; ++c) transposed[3 * r + c] = static_cast<double>(w[3 * c + r]);
        Mat3 turn{};
        for (int r = 0; r < 3; ++r) {
            const Vec3 half = times(inverse.data() + 3 * r, transposed);
            const Vec3 row = times(half.data(), cell);
            for (int c = 0; c < 3; ++c) turn[3 * r + c] = row[c];
        }
        found.push_back(turn);
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
