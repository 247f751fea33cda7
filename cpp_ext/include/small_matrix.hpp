// Vectors and matrices of three: row vectors, matrices row by row.
#pragma once

#include <array>

#include "lattice_search.hpp"
#include "multigraph.hpp"

namespace langevin_xtal {

using Mat3 = std::array<double, 9>;

/// Rows of the inverse, so that a row vector v [Å] has fractions v · inverse.
inline Mat3 inverse_of(const double* m) {
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

/// row · matrix.
inline Vec3 times(const double* row, const double* matrix) {
    Vec3 out{};
    for (int c = 0; c < 3; ++c)
        out[c] = row[0] * matrix[c] + row[1] * matrix[3 + c] + row[2] * matrix[6 + c];
    return out;
}

/// matrix · column.
inline Vec3 onto(const double* matrix, const double* column) {
    Vec3 out{};
    for (int r = 0; r < 3; ++r)
        out[r] = matrix[3 * r] * column[0] + matrix[3 * r + 1] * column[1] +
                 matrix[3 * r + 2] * column[2];
    return out;
}

inline Mat3 product(const double* left, const double* right) {
    Mat3 out{};
    for (int r = 0; r < 3; ++r) {
        const Vec3 row = times(left + 3 * r, right);
        for (int c = 0; c < 3; ++c) out[3 * r + c] = row[c];
    }
    return out;
}

inline Mat3 transposed(const double* m) {
    return {m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]};
}

inline double norm(const Vec3& v) { return norm(v[0], v[1], v[2]); }

/// The nearest integer, ties to the even one, for numbers below 2^51.
inline double nearest_integer(double x) {
    constexpr double shift = 6755399441055744.0;  // 1.5 · 2^52
    return (x + shift) - shift;
}

/// W x + w of a row of the operation table.
inline Vec3 image_of(const CrystalView& all, std::int64_t op, const double* x) {
    const std::int64_t* w = all.rotations + 9 * op;
    const double* t = all.translations + 3 * op;
    Vec3 out{};
    for (int r = 0; r < 3; ++r)
        out[r] = static_cast<double>(w[3 * r]) * x[0] + static_cast<double>(w[3 * r + 1]) * x[1] +
                 static_cast<double>(w[3 * r + 2]) * x[2] + t[r];
    return out;
}

/// Fractional vector from a point to the nearest lattice copy of another.
inline Vec3 wrapped_step(const double* from, const Vec3& to) {
    Vec3 out{};
    for (int r = 0; r < 3; ++r) {
        out[r] = to[r] - from[r];
        out[r] -= nearest_integer(out[r]);
    }
    return out;
}

}  // namespace langevin_xtal
