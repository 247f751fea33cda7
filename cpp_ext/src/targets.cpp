// The noise of an orbit; langevin_xtal/diffusion/targets.py says what it is and how it is summed.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sites.hpp"
#include "small_matrix.hpp"

namespace langevin_xtal {

namespace {

/// Terms below exp(-40) of the largest are lost in the rounding of their sum.
constexpr double FAINT = 40.0;

/// Log of a sum over lattice vectors, and the mean vector [Å].
struct Summed {
    double log_weight = 0.0;
    Vec3 mean{};
};

enum class Shape { rectangular, hexagonal, general };

Shape shape_of(const double* cell) {
    const double *a = cell, *b = cell + 3, *c = cell + 6;
    const double aa = dot(a, a), bb = dot(b, b), cc = dot(c, c), ab = dot(a, b);
    const double tiny = 1e-9 * std::max(aa, std::max(bb, cc));
    if (!(std::abs(dot(a, c)) < tiny && std::abs(dot(b, c)) < tiny)) return Shape::general;
    if (std::abs(ab) < tiny) return Shape::rectangular;
    const bool hexagonal = std::abs(ab + 0.5 * aa) < tiny && std::abs(aa - bb) < tiny;
    return hexagonal ? Shape::hexagonal : Shape::general;
}

/// Weighted means of vectors whose largest weight is known only in the end.
class Mixture {
 public:
    void add(double log_weight, const Vec3& mean) {
        if (log_weight > top_) {
            const double factor = std::exp(top_ - log_weight);
            total_ *= factor;
            for (double& s : sum_) s *= factor;
            top_ = log_weight;
        } else if (top_ - log_weight > FAINT) {
            return;
        }
        const double weight = std::exp(log_weight - top_);
        total_ += weight;
        for (int r = 0; r < 3; ++r) sum_[r] += weight * mean[r];
    }
    Summed summed() const {
        return {top_ + std::log(total_), {sum_[0] / total_, sum_[1] / total_, sum_[2] / total_}};
    }
    bool empty() const { return total_ == 0.0; }

 private:
    double top_ = -std::numeric_limits<double>::infinity(), total_ = 0.0;
    Vec3 sum_{};
};

/// Sums over the lattice vectors of one crystal with one noise.
class Images {
 public:
    Images(const double* cell, double sigma, const NoisedView& view)
        : cell_(cell), sigma_(sigma), view_(view), shape_(shape_of(cell)) {
        Mat3 axes{};
        for (int k = 0; k < 9; ++k) axes[k] = cell[k];
        if (shape_ == Shape::hexagonal)  // a, a + 2b, c span a rectangular cell of two points
            for (int c = 0; c < 3; ++c) axes[3 + c] = cell[c] + 2.0 * cell[3 + c];
        for (int r = 0; r < 3; ++r) {
            const double* axis = axes.data() + 3 * r;
            axis_length_[r] = norm(axis[0], axis[1], axis[2]);
            for (int c = 0; c < 3; ++c) unit_[3 * r + c] = axis[c] / axis_length_[r];
            longest_ = std::max(longest_, norm(cell[3 * r], cell[3 * r + 1], cell[3 * r + 2]));
        }
        const auto reach = static_cast<int>(view.box_images);
        for (int i = -reach; i <= reach; ++i)
            for (int j = -reach; j <= reach; ++j)
                for (int k = -reach; k <= reach; ++k) {
                    const double step[3] = {double(i), double(j), double(k)};
                    box_.push_back(times(step, cell));
                }
    }

    /// Of fractions of a cell, each within a half of 0.
    Summed all(const Vec3& delta) const {
        switch (shape_) {
            case Shape::rectangular:
                return along_axes(delta);
            case Shape::hexagonal:
                return hexagonal(delta);
            default:
                return in_box(delta);
        }
    }

    /// Takes the free directions of a site, for confined().
    void confine(const double* projector) {
        for (int r = 0; r < 3; ++r)
            for (int c = 0; c < 3; ++c) across_[3 * r + c] = (r == c) - projector[3 * r + c];
        box_across_.clear();
        for (const Vec3& step : box_) box_across_.push_back(times(step.data(), across_.data()));
    }

    /// Of the few images along the free directions of the site last given to confine().
    Summed confined(const Vec3& delta) const {
        const Vec3 here = times(delta.data(), cell_);
        const Vec3 off = times(here.data(), across_.data());
        const double close = view_.identical * view_.identical;
        Mixture mixture;
        for (std::size_t s = 0; s < box_.size(); ++s) {
            const Vec3& step = box_across_[s];
            const double x = off[0] - step[0], y = off[1] - step[1], z = off[2] - step[2];
            if (x * x + y * y + z * z > close) continue;
            const Vec3 v = {here[0] - box_[s][0], here[1] - box_[s][1], here[2] - box_[s][2]};
            mixture.add(log_density(v), v);
        }
        if (mixture.empty()) return {view_.unreached, {}};
        return even_if_wide(mixture.summed());
    }

 private:
    const double* cell_;
    double sigma_;
    const NoisedView& view_;
    Shape shape_;
    Vec3 axis_length_{};
    Mat3 unit_{}, across_{};
    double longest_ = 0.0;
    std::vector<Vec3> box_, box_across_;  // lattice vectors around the origin [Å]

    double log_density(const Vec3& v) const {
        return -0.5 * (dot(v.data(), v.data()) / (sigma_ * sigma_));
    }

    /// Noise above the longest period is uniform to 1e-8, which a truncated sum would not show.
    Summed even_if_wide(Summed summed) const {
        if (sigma_ > longest_) summed.mean = {};
        return summed;
    }

    Summed along_axes(const Vec3& delta) const {
        Summed found;
        for (int r = 0; r < 3; ++r) {
            const double length = axis_length_[r], nearest = delta[r] * length;
            double total = 0.0, sum = 0.0;
            for (std::int64_t k = -view_.axis_images; k <= view_.axis_images; ++k) {
                const double reach = (delta[r] - static_cast<double>(k)) * length;
                const double below =
                    0.5 * ((reach * reach - nearest * nearest) / (sigma_ * sigma_));
                if (below > FAINT) continue;
                const double weight = std::exp(-below);
                total += weight;
                sum += weight * reach;
            }
            found.log_weight += std::log(total) - 0.5 * (nearest * nearest / (sigma_ * sigma_));
            const double mean = sigma_ > length ? 0.0 : sum / total;
            for (int c = 0; c < 3; ++c) found.mean[c] += mean * unit_[3 * r + c];
        }
        return found;
    }

    Summed hexagonal(const Vec3& delta) const {
        Mixture mixture;
        for (int copy = 0; copy < 2; ++copy) {
            const double u = delta[0] + copy, v = delta[1] + copy;
            // u a + v b = (u - v/2) a + (v/2) (a + 2b)
            Vec3 own = {u - 0.5 * v, 0.5 * v, delta[2]};
            for (double& x : own) x -= nearest_integer(x);
            const Summed one = along_axes(own);
            mixture.add(one.log_weight, one.mean);
        }
        return mixture.summed();
    }

    Summed in_box(const Vec3& delta) const {
        const Vec3 here = times(delta.data(), cell_);
        Mixture mixture;
        for (const Vec3& step : box_) {
            const Vec3 v = {here[0] - step[0], here[1] - step[1], here[2] - step[2]};
            mixture.add(log_density(v), v);
        }
        return even_if_wide(mixture.summed());
    }
};

}  // namespace

std::vector<double> orbit_noise(const CrystalView& clean, const NoisedView& noised) {
    std::vector<std::int64_t> site, op;
    distinct_images(clean, noised.identical, site, op);
    std::vector<double> out(3 * clean.sites);
    std::size_t image = 0;
    for (std::int64_t b = 0; b < clean.crystals; ++b) {
        Images images(clean.lattice + 9 * b, noised.sigma[b], noised);
        for (std::int64_t i = clean.site_start[b]; i < clean.site_start[b + 1]; ++i) {
            const double* projector = noised.projector + 9 * i;
            const double freedom = std::round(projector[0] + projector[4] + projector[8]);
            const bool bound = noised.confined[i] && freedom < 3.0;
            if (bound) images.confine(projector);
            Mixture mixture;
            for (; image < site.size() && site[image] == i; ++image) {
                if (bound && freedom == 0.0) continue;  // it cannot move
                const Vec3 delta = wrapped_step(
                    image_of(clean, op[image], clean.frac + 3 * i).data(),
                    {noised.frac[3 * i], noised.frac[3 * i + 1], noised.frac[3 * i + 2]});
                const Summed one = bound ? images.confined(delta) : images.all(delta);
                mixture.add(one.log_weight, one.mean);
            }
            if (mixture.empty()) continue;
            const Vec3 mean = mixture.summed().mean;
            for (int r = 0; r < 3; ++r) out[3 * i + r] = mean[r] / noised.sigma[b];
        }
    }
    return out;
}

}  // namespace langevin_xtal
