// The symmetry multigraph on plain arrays; langevin_xtal/graph/contract.py says what it is.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace langevin_xtal {

/// A batch of crystals, borrowed: B crystals, A sites, O operations (CrystalArrays in Python).
struct CrystalView {
    std::int64_t crystals = 0, sites = 0;
    const double* lattice = nullptr;           // (B, 3, 3) rows a, b, c [Å]
    const double* frac = nullptr;              // (A, 3)
    const std::int64_t* site_start = nullptr;  // (B + 1,)
    const std::int64_t* rotations = nullptr;   // (O, 3, 3)
    const double* translations = nullptr;      // (O, 3)
    const std::int64_t* op_start = nullptr;    // (B,)
    const std::int64_t* op_count = nullptr;    // (B,)
    const std::int64_t* orbit = nullptr;       // (A,)
};

/// Which images are neighbours (GraphSettings), and the contract's constants.
struct Settings {
    double cutoff = 6.0;  // [Å]
    std::int64_t k_min = 12, k_max = 24;
    bool all_pairs = true;
    double coincidence = 0.15;  // [Å]
    double identical = 1e-3;    // [Å]
    double margin = 1e-6;       // [Å]
    double max_near = 2e6;
};

/// Edges of a batch, ordered by source, target, operation and shift.
struct Multigraph {
    std::vector<std::int64_t> edge_index;                              // (2, E)
    std::vector<std::int64_t> edge_op;                                 // (E,)
    std::vector<std::int64_t> edge_shift;                              // (E, 3)
    std::vector<double> edge_vec;                                      // (E, 3) [Å]
    std::vector<double> edge_dist;                                     // (E,) [Å]
    std::vector<std::uint8_t> edge_is_self_image, edge_is_long_range;  // (E,)
    std::vector<std::int64_t> edge_start;                              // (A + 1,)
    std::vector<double> site_reach;                                    // (A,) [Å]
    std::vector<std::int64_t> multiplicity;                            // (A,)
};

/// A search around one site that may meet more than `max_near` images.
class TooManyNear : public std::runtime_error {
 public:
    TooManyNear(std::int64_t crystal, double radius, double near)
        : std::runtime_error("search among too many images"),
          crystal(crystal),
          radius(radius),
          near(near) {}
    std::int64_t crystal;
    double radius;  // [Å]
    double near;
};

/// The multigraph of a batch, on `threads` threads (0: all the hardware has).
/// @throws TooManyNear for the first crystal that needs too wide a search.
Multigraph build(const CrystalView& crystals, const Settings& settings, int threads);

/// Site and operation (of the table) of every image of a site that no operation before gives.
void distinct_images(const CrystalView& crystals, double identical, std::vector<std::int64_t>& site,
                     std::vector<std::int64_t>& op);

/// Edges of a multigraph, borrowed.
struct EdgeView {
    std::int64_t edges = 0;
    const std::int64_t* target = nullptr;      // (E,)
    const double* vec = nullptr;               // (E, 3) [Å]
    const double* dist = nullptr;              // (E,) [Å]
    const std::uint8_t* long_range = nullptr;  // (E,)
    const std::int64_t* start = nullptr;       // (A + 1,)
};

/// For each edge the first one that an operation leaving their source in place turns into it.
/// Sites and ends of edges within `close` [Å] of each other are the same.
std::vector<std::int64_t> equivalent_edges(const CrystalView& crystals, const EdgeView& edges,
                                           double close);

/// Edges and messages of a batch, borrowed: E edges, M messages, A sites (GraphBatch in Python).
struct LayoutView {
    std::int64_t edges = 0, messages = 0, sites = 0;
    const std::int64_t* source = nullptr;      // (E,)
    const std::int64_t* target = nullptr;      // (E,)
    const double* vec = nullptr;               // (E, 3) [Å]
    const double* turned = nullptr;            // (E, 3) the way back, seen by the target [Å]
    const double* dist = nullptr;              // (E,) [Å]
    const std::uint8_t* sends = nullptr;       // (E,)
    const std::int64_t* first_edge = nullptr;  // (M,)
    const std::int64_t* message = nullptr;     // (E,)
    double identical = 1e-3;                   // [Å]
    double no_length = 1e-8;                   // [Å^2]
};

/// Triplets in rows: K edges leaving a site against `row` messages that arrive there.
struct Layout {
    std::int64_t out = 0, rows = 0;                   // K, R
    std::vector<std::int64_t> out_edge, out_message;  // (A, K) E and M where none
    std::vector<std::int64_t> row_site;               // (R,)
    std::vector<std::int64_t> row_edge;               // (R, row) E where none
    std::vector<std::int64_t> row_of_message;         // (M,)
    std::vector<double> cosine;                       // (R, row, K)
    std::vector<std::uint8_t> is_triplet;             // (R, row, K)
};
Layout lay_out_triplets(const LayoutView& view, std::int64_t row);

}  // namespace langevin_xtal
