// Lattice translations within a sphere: the inner loop of the multigraph.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace langevin_xtal {

using Vec3 = std::array<double, 3>;

// Baseline x86-64 has no rounding instruction, so std::floor would be a library call.
inline std::int64_t floor_int(double x) {
    const auto i = static_cast<std::int64_t>(x);
    return i - (x < static_cast<double>(i));
}
inline std::int64_t ceil_int(double x) {
    const auto i = static_cast<std::int64_t>(x);
    return i + (x > static_cast<double>(i));
}

inline double norm(double x, double y, double z) { return std::sqrt(x * x + y * y + z * z); }
inline double dot(const double* u, const double* v) {
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
}

/// One cell: its rows a, b, c [Å] and their triangular factor, seen from c.
///
/// A point A a + B b + C c has length² (A aa)² + (A ab + B bb)² + (A ac + B bc + C cc)², so the
/// translations within a sphere are found axis by axis, with no candidate outside it, and in the
/// lexicographic order of the shifts (which is the order of the edges).
struct Cell {
    double row[3][3];
    double inverse_height[3];  // |columns of the inverse lattice| [1/Å]
    double volume;             // [Å^3]
    double aa, ab, ac, bb, bc, cc;

    explicit Cell(const double* lattice);

    /// The most translations that a sphere of this radius [Å] can hold.
    double translations_within(double radius) const {
        double product = 1.0;
        for (const double q : inverse_height) product *= std::floor(2.0 * radius * q + 1e-9) + 1.0;
        return product;
    }

    /// Cartesian vector [Å] of fractional (x, y, z).
    Vec3 cartesian(double x, double y, double z) const {
        return {x * row[0][0] + y * row[1][0] + z * row[2][0],
                x * row[0][1] + y * row[1][1] + z * row[2][1],
                x * row[0][2] + y * row[1][2] + z * row[2][2]};
    }

    /// Calls emit(n, vector, distance) for every integer n with |(delta + n) lattice| < radius.
    template <class Emit>
    void images_within(const Vec3& delta, double radius, Emit&& emit) const {
        // the slack keeps images at the rim that rounding would lose; emit's test is the exact one
        const double r2 = radius * radius * (1.0 + 1e-12);
        const double reach_a = std::sqrt(r2) / aa;
        const std::int64_t last_a = floor_int(reach_a - delta[0]);
        for (std::int64_t i = ceil_int(-reach_a - delta[0]); i <= last_a; ++i) {
            const double a = delta[0] + static_cast<double>(i);
            const double rest_b = r2 - a * aa * (a * aa);
            const double reach_b = std::sqrt(rest_b > 0.0 ? rest_b : 0.0) / bb;
            const double mid_b = a * ab / bb + delta[1];
            const std::int64_t last_b = floor_int(reach_b - mid_b);
            for (std::int64_t j = ceil_int(-reach_b - mid_b); j <= last_b; ++j) {
                const double b = delta[1] + static_cast<double>(j);
                const double along_b = a * ab + b * bb;
                const double rest_c = rest_b - along_b * along_b;
                const double reach_c = std::sqrt(rest_c > 0.0 ? rest_c : 0.0) / cc;
                const double mid_c = (a * ac + b * bc) / cc + delta[2];
                const std::int64_t last_c = floor_int(reach_c - mid_c);
                for (std::int64_t k = ceil_int(-reach_c - mid_c); k <= last_c; ++k) {
                    const Vec3 vec = cartesian(a, b, delta[2] + static_cast<double>(k));
                    const double distance = norm(vec[0], vec[1], vec[2]);
                    if (distance < radius) emit(i, j, k, vec, distance);
                }
            }
        }
    }
};

}  // namespace langevin_xtal
