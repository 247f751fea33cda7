#include "lattice_search.hpp"

namespace langevin_xtal {

namespace {

Vec3 cross(const double* u, const double* v) {
    return {u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]};
}

}  // namespace

Cell::Cell(const double* lattice) {
    for (int i = 0; i < 9; ++i) row[i / 3][i % 3] = lattice[i];
    const double *a = row[0], *b = row[1], *c = row[2];
    const Vec3 face[3] = {cross(b, c), cross(c, a), cross(a, b)};
    volume = std::abs(dot(a, face[0].data()));
    double area[3];
    for (int i = 0; i < 3; ++i) {
        area[i] = norm(face[i][0], face[i][1], face[i][2]);
        inverse_height[i] = area[i] / volume;
    }
    // Gram-Schmidt from c on; heights come from areas, which lose less in oblique cells
    cc = norm(c[0], c[1], c[2]);
    bc = dot(b, c) / cc;
    bb = area[0] / cc;
    aa = volume / area[0];
    ac = dot(a, c) / cc;
    // b's part normal to c points along c × (b × c), which has length cc |b × c|
    const Vec3 normal = cross(c, face[0].data());
    ab = dot(a, normal.data()) / (cc * area[0]);
}

}  // namespace langevin_xtal
