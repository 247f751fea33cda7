// What the kernels of every instruction set read; no code here, so nothing is compiled twice.
#pragma once

#include <cstdint>

#include "edge_network.hpp"

namespace langevin_xtal {

constexpr std::int64_t TILE = 64;  // rows carried through all layers at once

/// One call of the network. Row order is by target, sender order by source.
struct NetworkJob {
    NetworkShape shape;
    std::int64_t messages, senders, crystals;
    const std::int32_t *row_message, *row_source, *row_target, *row_crystal, *sender_row, *site_row,
        *site_sender, *chunk_site;
    const float* angle;
    const std::int64_t* angle_start;
    const float* const* weights;  // as torch stores them
    const float* const* turned;   // input rows × output columns, where the forward pass needs it
    const float* features;        // (M, features) in row order
    const float* radial;          // (S, radial) in sender order
    const float* angular;         // (S, spherical · radial)
    const float* weight;          // (M,) in row order
    const float *of_source, *of_target, *noise;
    float* out;    // (M, 2) in the order of messages
    float* saved;  // or null
    const float* out_gradient;
    float *source_gradient, *target_gradient, *noise_gradient;
};

/// Numbers of scratch a thread needs for parts of at most so many rows and senders.
inline std::int64_t scratch_size(const NetworkShape& s, std::int64_t rows, std::int64_t senders) {
    return 5 * TILE * (s.width + 16) + 2 * TILE * s.triplet_width + 2 * rows * s.width +
           rows * s.triplet_width + senders * s.spherical * s.triplet_width + 1024;
}

struct NetworkKernels {
    const char* name;
    void (*forward)(const NetworkJob&, std::int64_t chunk, float* scratch);
    /// Adds to `gradients`; those of FROM_EDGE, OUT_GATE and GATE are input rows × output columns.
    void (*backward)(const NetworkJob&, std::int64_t chunk, float* scratch,
                     float* const* gradients);
};

const NetworkKernels* avx512_kernels();  // null where they are not built or cannot run
const NetworkKernels* avx2_kernels();
const NetworkKernels* base_kernels();

}  // namespace langevin_xtal
