#include "multigraph.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <mutex>
#include <tuple>

#include "lattice_search.hpp"
#include "threads.hpp"

namespace langevin_xtal {

namespace {

constexpr double PI = 3.14159265358979323846;
constexpr double GROWTH = 1.3;  // of the radius, as in the reference: errors depend on it

/// One image of a site, kept once per crystal.
struct Atom {
    Vec3 frac;          // W x + w
    std::int32_t site;  // within the crystal
    std::int32_t op;
};

/// An image of an atom near the current source.
struct Candidate {
    Vec3 vec;  // [Å]
    double distance;
    std::int32_t atom;
    std::int32_t shift[3];
};

/// Atoms are numbered by site, then operation, so this is the order of the edges.
bool before(const Candidate& x, const Candidate& y) {
    return std::tie(x.atom, x.shift[0], x.shift[1], x.shift[2]) <
           std::tie(y.atom, y.shift[0], y.shift[1], y.shift[2]);
}

struct Edge {
    Vec3 vec;
    double distance;
    std::int32_t source, target, op;  // sites within the crystal
    std::int32_t shift[3];
    bool is_self_image, is_long_range;
};

/// Builds crystals one after another; its buffers are reused, so each thread has one.
class Builder {
 public:
    Builder(const CrystalView& crystals, const Settings& settings)
        : all_(crystals), set_(settings) {}

    std::vector<Edge> edges;  // of all crystals this builder has done

    void add(std::int64_t b, std::int64_t* multiplicity, std::int64_t* degree, double* reach) {
        const std::int64_t first = all_.site_start[b];
        sites_ = static_cast<std::int32_t>(all_.site_start[b + 1] - first);
        const Cell cell(all_.lattice + 9 * b);
        find_atoms(b, cell, multiplicity + first);
        label_sites(all_.orbit + first);
        for (std::int32_t i = 0; i < sites_; ++i) {
            const std::size_t old = edges.size();
            reach[first + i] = neighbours(b, i, cell);
            far_.clear();
            if (set_.all_pairs) missing_pairs(b, i, cell);
            store(i);
            degree[first + i] = static_cast<std::int64_t>(edges.size() - old);
        }
    }

    /// Appends the site (of all) and the operation of every distinct image of crystal b's sites.
    void list_images(std::int64_t b, std::vector<std::int64_t>& site,
                     std::vector<std::int64_t>& op) {
        const std::int64_t first = all_.site_start[b];
        sites_ = static_cast<std::int32_t>(all_.site_start[b + 1] - first);
        std::vector<std::int64_t> multiplicity(sites_);
        find_atoms(b, Cell(all_.lattice + 9 * b), multiplicity.data());
        for (const Atom& atom : atoms_) {
            site.push_back(first + atom.site);
            op.push_back(all_.op_start[b] + atom.op);
        }
    }

 private:
    const CrystalView& all_;
    const Settings& set_;
    std::int32_t sites_ = 0;
    const double* frac_ = nullptr;  // of the current crystal's sites
    std::vector<Atom> atoms_;
    std::vector<Vec3> wrapped_;
    std::vector<std::int32_t> label_;        // (sites,) orbits numbered from 0
    std::vector<std::int32_t> label_start_;  // (labels + 1,) into label_atoms_
    std::vector<std::int32_t> label_atoms_;
    std::vector<std::int32_t> order_;
    std::vector<char> seen_;  // (labels,) among the neighbours
    std::vector<Candidate> near_, far_, shell_;
    std::vector<double> sorted_;

    /// Distinct images of every site: the ones no kept lower operation gives.
    void find_atoms(std::int64_t b, const Cell& cell, std::int64_t* multiplicity) {
        frac_ = all_.frac + 3 * all_.site_start[b];
        atoms_.clear();
        const double wide[3] = {set_.identical * cell.inverse_height[0] * (1.0 + 1e-9),
                                set_.identical * cell.inverse_height[1] * (1.0 + 1e-9),
                                set_.identical * cell.inverse_height[2] * (1.0 + 1e-9)};
        for (std::int32_t j = 0; j < sites_; ++j) {
            const double* x = frac_ + 3 * j;
            wrapped_.clear();
            for (std::int64_t op = 0; op < all_.op_count[b]; ++op) {
                const std::int64_t* w = all_.rotations + 9 * (all_.op_start[b] + op);
                const double* t = all_.translations + 3 * (all_.op_start[b] + op);
                Vec3 image, inside;
                for (int r = 0; r < 3; ++r) {
                    image[r] = static_cast<double>(w[3 * r]) * x[0] +
                               static_cast<double>(w[3 * r + 1]) * x[1] +
                               static_cast<double>(w[3 * r + 2]) * x[2] + t[r];
                    inside[r] = image[r] - static_cast<double>(floor_int(image[r]));
                }
                if (is_new(inside, wide, cell)) {
                    wrapped_.push_back(inside);
                    atoms_.push_back({image, j, static_cast<std::int32_t>(op)});
                }
            }
            multiplicity[j] = static_cast<std::int64_t>(wrapped_.size());
        }
    }

    /// Whether a wrapped image is none of the kept ones; fractions far apart need no distance.
    bool is_new(const Vec3& inside, const double* wide, const Cell& cell) const {
        for (const Vec3& kept : wrapped_) {
            double d[3];
            int r = 0;
            for (; r < 3; ++r) {
                d[r] = kept[r] - inside[r];
                if (d[r] > 0.5) d[r] -= 1.0;
                if (d[r] < -0.5) d[r] += 1.0;
                if (std::abs(d[r]) > wide[r]) break;
            }
            if (r < 3) continue;
            const Vec3 v = cell.cartesian(d[0], d[1], d[2]);
            if (norm(v[0], v[1], v[2]) <= set_.identical) return false;
        }
        return true;
    }

    /// Numbers the orbits and lists the atoms of each.
    void label_sites(const std::int64_t* orbit) {
        order_.resize(sites_);
        label_.resize(sites_);
        for (std::int32_t i = 0; i < sites_; ++i) order_[i] = i;
        std::sort(order_.begin(), order_.end(),
                  [orbit](std::int32_t x, std::int32_t y) { return orbit[x] < orbit[y]; });
        std::int32_t labels = 0;
        for (std::int32_t k = 0; k < sites_; ++k) {
            if (k > 0 && orbit[order_[k]] != orbit[order_[k - 1]]) ++labels;
            label_[order_[k]] = labels;
        }
        if (sites_ > 0) ++labels;
        seen_.resize(labels);
        label_start_.assign(labels + 1, 0);
        for (const Atom& atom : atoms_) ++label_start_[label_[atom.site] + 1];
        for (std::int32_t l = 0; l < labels; ++l) label_start_[l + 1] += label_start_[l];
        label_atoms_.resize(atoms_.size());
        order_.assign(label_start_.begin(), label_start_.end() - 1);
        for (std::size_t k = 0; k < atoms_.size(); ++k)
            label_atoms_[order_[label_[atoms_[k].site]]++] = static_cast<std::int32_t>(k);
    }

    void refuse_wide(std::int64_t b, const Cell& cell, double radius) const {
        const double near = static_cast<double>(atoms_.size()) * cell.translations_within(radius);
        if (!(near <= set_.max_near)) throw TooManyNear(b, radius, near);
    }

    /// Appends the images of one atom within `radius` of site i.
    void collect(std::int32_t i, std::int32_t k, const Cell& cell, double radius,
                 std::vector<Candidate>& found) const {
        const Atom& atom = atoms_[k];
        const double* x = frac_ + 3 * i;
        const Vec3 delta = {atom.frac[0] - x[0], atom.frac[1] - x[1], atom.frac[2] - x[2]};
        const double skip = label_[atom.site] == label_[i] ? set_.coincidence : -1.0;
        cell.images_within(
            delta, radius,
            [&](std::int64_t a, std::int64_t b, std::int64_t c, const Vec3& vec, double distance) {
                if (distance < skip) return;
                found.push_back({vec,
                                 distance,
                                 k,
                                 {static_cast<std::int32_t>(a), static_cast<std::int32_t>(b),
                                  static_cast<std::int32_t>(c)}});
            });
    }

    /// Rule 2: leaves the neighbours of site i in near_, in edge order, and returns its reach.
    double neighbours(std::int64_t b, std::int32_t i, const Cell& cell) {
        refuse_wide(b, cell, set_.cutoff);
        // With k_max binding, the cut-off may hold far more images than are wanted: begin with
        // a sphere that holds about the number needed to be sure.
        const double wanted = 1.4 * static_cast<double>(set_.k_max) + 8.0;
        const double density = static_cast<double>(atoms_.size()) / cell.volume;
        double radius = std::cbrt(0.75 * wanted / (PI * density));
        const double rim = 0.9 * set_.cutoff;
        while (radius < rim) {
            search(i, cell, radius);
            double reach = 0.0;
            if (over(near_.size()) && keep_fitting(&reach)) return reach;
            radius *= 1.25;
        }
        radius = set_.cutoff;
        while (true) {
            search(i, cell, radius);
            std::size_t inside = near_.size();
            const double edge = set_.cutoff - set_.margin;
            inside = static_cast<std::size_t>(
                std::count_if(near_.begin(), near_.end(),
                              [edge](const Candidate& c) { return c.distance < edge; }));
            double reach = 0.0;
            if (over(inside)) {
                if (keep_fitting(&reach)) return reach;
            } else if (static_cast<std::int64_t>(inside) >= set_.k_min) {
                if (inside < near_.size()) keep_below(edge);
                return set_.cutoff;
            } else if (keep_enough(&reach)) {
                return reach;
            }
            radius *= GROWTH;
            refuse_wide(b, cell, radius);
        }
    }

    bool over(std::size_t count) const { return static_cast<std::int64_t>(count) > set_.k_max; }

    void search(std::int32_t i, const Cell& cell, double radius) {
        near_.clear();
        const auto count = static_cast<std::int32_t>(atoms_.size());
        for (std::int32_t k = 0; k < count; ++k) collect(i, k, cell, radius, near_);
    }

    void keep_below(double distance) {
        near_.erase(
            std::remove_if(near_.begin(), near_.end(),
                           [distance](const Candidate& c) { return !(c.distance < distance); }),
            near_.end());
    }

    void take_distances(const std::vector<Candidate>& images) {
        sorted_.resize(images.size());
        for (std::size_t k = 0; k < images.size(); ++k) sorted_[k] = images[k].distance;
    }

    /// Whether a shell ends with `count` images, `sorted_` being sorted around there.
    bool ends_at(std::size_t count) const {
        return sorted_[count] - sorted_[count - 1] > set_.identical;
    }

    void keep_count(std::size_t count) { keep_below(0.5 * (sorted_[count - 1] + sorted_[count])); }

    /// More than k_max images: the whole shells that fit, or the first. False: none is complete.
    bool keep_fitting(double* reach) {
        take_distances(near_);
        std::size_t count = 0;
        const auto most = static_cast<std::size_t>(std::max<std::int64_t>(set_.k_max, 0));
        std::nth_element(sorted_.begin(), sorted_.begin() + most, sorted_.end());
        std::sort(sorted_.begin(), sorted_.begin() + most);
        for (std::size_t k = most; k > 0 && count == 0; --k)
            if (ends_at(k)) count = k;
        if (count == 0) {
            std::sort(sorted_.begin() + most, sorted_.end());
            for (std::size_t k = most + 1; k < sorted_.size() && count == 0; ++k)
                if (ends_at(k)) count = k;
        }
        if (count == 0) return false;
        *reach = std::min(sorted_[count], set_.cutoff);
        keep_count(count);
        return true;
    }

    /// Fewer than k_min images: whole shells until there are enough. False: not enough complete.
    bool keep_enough(double* reach) {
        take_distances(near_);
        std::sort(sorted_.begin(), sorted_.end());
        const auto least = static_cast<std::size_t>(set_.k_min);
        for (std::size_t k = std::max<std::size_t>(least, 1); k < sorted_.size(); ++k) {
            if (!ends_at(k)) continue;
            *reach = std::max(sorted_[k], set_.cutoff);
            keep_count(k);
            return true;
        }
        return false;
    }

    /// Rule 3: the nearest shells of the orbits with no image in near_, into far_.
    void missing_pairs(std::int64_t b, std::int32_t i, const Cell& cell) {
        std::fill(seen_.begin(), seen_.end(), 0);
        for (const Candidate& c : near_) seen_[label_[atoms_[c.atom].site]] = 1;
        const auto labels = static_cast<std::int32_t>(seen_.size());
        for (std::int32_t l = 0; l < labels; ++l)
            if (!seen_[l] && label_start_[l] < label_start_[l + 1]) nearest_shell(b, i, l, cell);
        if (!std::is_sorted(far_.begin(), far_.end(), before))
            std::sort(far_.begin(), far_.end(), before);
    }

    /// Some image of atom k that counts for site i is no further than this [Å].
    double distance_bound(std::int32_t i, std::int32_t k, const Cell& cell) const {
        double d[3];
        for (int r = 0; r < 3; ++r) {
            d[r] = atoms_[k].frac[r] - frac_[3 * i + r];
            d[r] -= static_cast<double>(floor_int(d[r] + 0.5));
        }
        const Vec3 v = cell.cartesian(d[0], d[1], d[2]);
        const double distance = norm(v[0], v[1], v[2]);
        if (label_[atoms_[k].site] != label_[i] || distance >= set_.coincidence) return distance;
        double shortest = std::numeric_limits<double>::infinity();
        for (const auto& row : cell.row)
            shortest = std::min(shortest, norm(row[0], row[1], row[2]));
        return distance + shortest * std::ceil((set_.coincidence + distance) / shortest);
    }

    void nearest_shell(std::int64_t b, std::int32_t i, std::int32_t l, const Cell& cell) {
        double bound = std::numeric_limits<double>::infinity();
        for (std::int32_t m = label_start_[l]; m < label_start_[l + 1]; ++m)
            bound = std::min(bound, distance_bound(i, label_atoms_[m], cell));
        double last = 0.0;
        double allowed = set_.cutoff;
        for (double slack = 2.0 * set_.identical;; slack *= 2.0) {
            shell_.clear();
            for (std::int32_t m = label_start_[l]; m < label_start_[l + 1]; ++m)
                collect(i, label_atoms_[m], cell, bound + slack, shell_);
            take_distances(shell_);
            std::sort(sorted_.begin(), sorted_.end());
            std::size_t count = 1;
            while (count < sorted_.size() && !ends_at(count)) ++count;
            if (!sorted_.empty()) last = sorted_[count - 1];
            // the reference grows its search from the cut-off until the shell is certain
            while (!(last + set_.identical < allowed)) {
                allowed *= GROWTH;
                refuse_wide(b, cell, allowed);
            }
            if (!sorted_.empty() && last + set_.identical < bound + slack) break;
        }
        const double edge = last + 0.5 * set_.identical;
        for (const Candidate& c : shell_)
            if (c.distance < edge) far_.push_back(c);
    }

    void store(std::int32_t i) {
        auto far = far_.begin();
        for (const Candidate& c : near_) {
            for (; far != far_.end() && before(*far, c); ++far) push(i, *far, true);
            push(i, c, false);
        }
        for (; far != far_.end(); ++far) push(i, *far, true);
    }

    void push(std::int32_t i, const Candidate& c, bool is_long_range) {
        const Atom& atom = atoms_[c.atom];
        edges.push_back({c.vec,
                         c.distance,
                         i,
                         atom.site,
                         atom.op,
                         {c.shift[0], c.shift[1], c.shift[2]},
                         label_[atom.site] == label_[i],
                         is_long_range});
    }
};

}  // namespace

Multigraph build(const CrystalView& crystals, const Settings& settings, int threads) {
    const std::int64_t count = crystals.crystals;
    if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, count)));

    Multigraph graph;
    graph.site_reach.resize(crystals.sites);
    graph.multiplicity.resize(crystals.sites);
    graph.edge_start.assign(crystals.sites + 1, 0);
    struct Piece {
        int thread;
        std::size_t begin, end;  // edges of that thread's builder
    };
    std::vector<Piece> pieces(count);
    std::vector<Builder> builders;
    builders.reserve(threads);
    for (int t = 0; t < threads; ++t) builders.emplace_back(crystals, settings);

    // the first failing crystal is the one reported, whatever the threads' order
    std::atomic<std::int64_t> next{0}, failed{count};
    std::exception_ptr error;
    std::mutex lock;
    run_threads(threads, [&](int t) {
        for (std::int64_t b = next++; b < failed; b = next++) {
            const std::size_t begin = builders[t].edges.size();
            try {
                builders[t].add(b, graph.multiplicity.data(), graph.edge_start.data() + 1,
                                graph.site_reach.data());
            } catch (...) {
                const std::lock_guard<std::mutex> guard(lock);
                if (b < failed) {
                    failed = b;
                    error = std::current_exception();
                }
            }
            pieces[b] = {t, begin, builders[t].edges.size()};
        }
    });
    if (error) std::rethrow_exception(error);

    for (std::int64_t i = 0; i < crystals.sites; ++i)
        graph.edge_start[i + 1] += graph.edge_start[i];
    const std::int64_t total = graph.edge_start[crystals.sites];
    graph.edge_index.resize(2 * total);
    graph.edge_op.resize(total);
    graph.edge_shift.resize(3 * total);
    graph.edge_vec.resize(3 * total);
    graph.edge_dist.resize(total);
    graph.edge_is_self_image.resize(total);
    graph.edge_is_long_range.resize(total);
    next = 0;
    run_threads(threads, [&](int) {
        for (std::int64_t b = next++; b < count; b = next++) {
            const std::int64_t first = crystals.site_start[b];
            std::int64_t e = graph.edge_start[first];
            const std::vector<Edge>& edges = builders[pieces[b].thread].edges;
            for (std::size_t k = pieces[b].begin; k < pieces[b].end; ++k, ++e) {
                const Edge& edge = edges[k];
                graph.edge_index[e] = first + edge.source;
                graph.edge_index[total + e] = first + edge.target;
                graph.edge_op[e] = edge.op;
                for (int r = 0; r < 3; ++r) {
                    graph.edge_shift[3 * e + r] = edge.shift[r];
                    graph.edge_vec[3 * e + r] = edge.vec[r];
                }
                graph.edge_dist[e] = edge.distance;
                graph.edge_is_self_image[e] = edge.is_self_image;
                graph.edge_is_long_range[e] = edge.is_long_range;
            }
        }
    });
    return graph;
}

void distinct_images(const CrystalView& crystals, double identical, std::vector<std::int64_t>& site,
                     std::vector<std::int64_t>& op) {
    Settings settings;
    settings.identical = identical;
    Builder builder(crystals, settings);
    for (std::int64_t b = 0; b < crystals.crystals; ++b) builder.list_images(b, site, op);
}

}  // namespace langevin_xtal
