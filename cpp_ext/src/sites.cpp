// Snapping of sites to special positions; langevin_xtal/graph/snapping.py says how.
#include "sites.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "small_matrix.hpp"

namespace langevin_xtal {

namespace {

/// x with matrix · x = right, by elimination with pivots; the matrix is positive definite.
Vec3 solved(Mat3 m, Vec3 right) {
    for (int k = 0; k < 3; ++k) {
        int pivot = k;
        for (int r = k + 1; r < 3; ++r)
            if (std::abs(m[3 * r + k]) > std::abs(m[3 * pivot + k])) pivot = r;
        for (int c = 0; c < 3; ++c) std::swap(m[3 * k + c], m[3 * pivot + c]);
        std::swap(right[k], right[pivot]);
        for (int r = k + 1; r < 3; ++r) {
            const double factor = m[3 * r + k] / m[3 * k + k];
            for (int c = k; c < 3; ++c) m[3 * r + c] -= factor * m[3 * k + c];
            right[r] -= factor * right[k];
        }
    }
    for (int k = 2; k >= 0; --k) {
        for (int c = k + 1; c < 3; ++c) right[k] -= m[3 * k + c] * right[c];
        right[k] /= m[3 * k + k];
    }
    return right;
}

double largest(const Vec3& v) {
    return std::max(std::abs(v[0]), std::max(std::abs(v[1]), std::abs(v[2])));
}

/// One crystal's sites, one after another.
class Snapper {
 public:
    Snapper(const CrystalView& all, const OperationView& operations, std::int64_t b,
            double identical)
        : all_(all),
          operations_(operations),
          cell_(all.lattice + 9 * b),
          frame_(inverse_of(cell_)),
          begin_(all.op_start[b]),
          end_(begin_ + all.op_count[b]),
          identical_(identical) {}

    void snap(std::int64_t i, const double* radius, SnappedSites& out) const {
        const double* x = all_.frac + 3 * i;
        Vec3 current = {x[0], x[1], x[2]};
        if (radius != nullptr && radius[i] > 0.0) current = most_special(current, radius[i]);
        const Stabiliser stabiliser = stabiliser_of(current);
        for (int r = 0; r < 3; ++r) current[r] += stabiliser.mean_step[r];
        const Vec3 moved = {x[0] - current[0], x[1] - current[1], x[2] - current[2]};
        const Vec3 displacement = times(moved.data(), cell_);
        const Mat3 back = transposed(stabiliser.mean_rotation.data());
        const Mat3 half = product(frame_.data(), back.data());
        const Mat3 projector = product(half.data(), cell_);
        for (int r = 0; r < 3; ++r) {
            out.frac[3 * i + r] = current[r];
            out.displacement[3 * i + r] = displacement[r];
        }
        for (int k = 0; k < 9; ++k) out.projector[9 * i + k] = projector[k];
        out.stabiliser_order[i] = stabiliser.order;
    }

 private:
    struct Stabiliser {
        std::int64_t order = 0;
        Vec3 mean_step{};
        Mat3 mean_rotation{};
    };

    const CrystalView& all_;
    const OperationView& operations_;
    const double* cell_;  // rows [Å]
    Mat3 frame_;
    std::int64_t begin_, end_;  // rows of the operation table
    double identical_;

    double length(const Vec3& frac) const { return norm(times(frac.data(), cell_)); }

    Stabiliser stabiliser_of(const Vec3& x) const {
        Stabiliser found;
        for (std::int64_t op = begin_; op < end_; ++op) {
            const Vec3 u = wrapped_step(x.data(), image_of(all_, op, x.data()));
            if (!(length(u) < identical_)) continue;
            ++found.order;
            for (int r = 0; r < 3; ++r) found.mean_step[r] += u[r];
            for (int k = 0; k < 9; ++k)
                found.mean_rotation[k] += static_cast<double>(all_.rotations[9 * op + k]);
        }
        const auto order = static_cast<double>(found.order);
        for (double& step : found.mean_step) step /= order;
        for (double& entry : found.mean_rotation) entry /= order;
        return found;
    }

    /// Cartesian matrix, on columns, of one on fractional columns.
    Mat3 cartesian(const Mat3& fractional) const {
        const Mat3 left = transposed(cell_), right = transposed(frame_.data());
        const Mat3 half = product(left.data(), fractional.data());
        return product(half.data(), right.data());
    }

    /// Enters the nearest fixed space of an operation, then, staying inside it, the next ones.
    Vec3 most_special(const Vec3& x, double radius) const {
        // a site already on a special position stays on it: begin with what its stabiliser forbids
        Mat3 normal = cartesian(stabiliser_of(x).mean_rotation);
        for (int k = 0; k < 9; ++k) normal[k] = (k % 4 == 0) - normal[k];
        Vec3 current = x;
        for (int turn = 0; turn < 3; ++turn) {
            double nearest = std::numeric_limits<double>::infinity();
            std::int64_t pick = end_;
            Vec3 step{};
            for (std::int64_t op = begin_; op < end_; ++op) {
                const Vec3 u = wrapped_step(current.data(), image_of(all_, op, current.data()));
                if (!(length(u) > identical_)) continue;
                const double distance = length(onto(operations_.inverse + 9 * op, u.data()));
                if (!(distance < nearest)) continue;
                // a screw or a glide leaves nothing fixed
                if (!(length(onto(operations_.fixed + 9 * op, u.data())) < identical_)) continue;
                nearest = distance;
                pick = op;
                step = u;
            }
            if (pick == end_ || !(nearest <= radius)) break;
            // least-squares step onto the fixed spaces of all operations entered so far
            Mat3 change{};
            for (int k = 0; k < 9; ++k)
                change[k] = static_cast<double>(all_.rotations[9 * pick + k]) - (k % 4 == 0);
            const Mat3 block = cartesian(change), back = transposed(block.data());
            Vec3 wanted = times(step.data(), cell_);
            for (double& w : wanted) w = -w;
            Mat3 grown = product(back.data(), block.data());
            for (int k = 0; k < 9; ++k) grown[k] += normal[k];
            Mat3 regular = grown;
            for (int k = 0; k < 9; k += 4) regular[k] += 1e-6;
            const Vec3 moved = solved(regular, onto(back.data(), wanted.data()));
            Vec3 left = onto(block.data(), moved.data());
            for (int r = 0; r < 3; ++r) left[r] -= wanted[r];
            const double miss = largest(left) + largest(onto(normal.data(), moved.data()));
            const Vec3 fractions = times(moved.data(), frame_.data());
            Vec3 trial{}, whole{};
            for (int r = 0; r < 3; ++r) {
                trial[r] = current[r] + fractions[r];
                whole[r] = trial[r] - x[r];
            }
            if (!(miss < identical_ && length(whole) <= radius)) break;
            current = trial;
            normal = grown;
        }
        return current;
    }
};

}  // namespace

SnappedSites snap_sites(const CrystalView& crystals, const OperationView& operations,
                        const double* radius, double identical) {
    SnappedSites out;
    out.frac.resize(3 * crystals.sites);
    out.displacement.resize(3 * crystals.sites);
    out.projector.resize(9 * crystals.sites);
    out.stabiliser_order.resize(crystals.sites);
    for (std::int64_t b = 0; b < crystals.crystals; ++b) {
        const Snapper snapper(crystals, operations, b, identical);
        for (std::int64_t i = crystals.site_start[b]; i < crystals.site_start[b + 1]; ++i)
            snapper.snap(i, radius, out);
    }
    return out;
}

}  // namespace langevin_xtal
