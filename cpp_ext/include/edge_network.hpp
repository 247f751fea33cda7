// The edge network of langevin_xtal/model/network.py on plain arrays: forward, and its gradient.
//
// A tile of messages goes through all layers while it is in the core's cache. Rows never mix but
// in the sum over triplets, and every number of a row is summed in the same order whatever tile it
// is in, so the result does not depend on the batch, the threads or the width of a vector.
#pragma once

#include <cstdint>
#include <vector>

namespace langevin_xtal {

/// Sizes of a network; `width` and `triplet_width` are multiples of 16.
struct NetworkShape {
    std::int64_t width = 0, triplet_width = 0, blocks = 0, radial = 0, spherical = 0, features = 0;
};

/// Weights of the network outside blocks, then of a block; `weight_list` in Python has this order.
enum Shared { FROM_EDGE, EMBED, EMBED_BIAS, OUT_GATE, OUT_GATE_BIAS, OUT, OUT_BIAS, LAST, SHARED };
enum InBlock {
    SENT,
    SENT_BIAS,
    GATE,
    ANGULAR,
    DOWN,
    UP,
    OWN,
    OWN_BIAS,
    BEFORE_1,
    BEFORE_1_BIAS,
    BEFORE_2,
    BEFORE_2_BIAS,
    SKIP,
    SKIP_BIAS,
    AFTER_1,
    AFTER_1_BIAS,
    AFTER_2,
    AFTER_2_BIAS,
    IN_BLOCK
};

/// Rows and columns of a weight as torch stores it (a bias has one column).
struct WeightSize {
    std::int64_t rows = 0, columns = 0;
};
std::vector<WeightSize> weight_sizes(const NetworkShape& shape);

/// A batch's messages as the network of the plain path reads them, borrowed.
struct MessageView {
    std::int64_t messages = 0, sites = 0, crystals = 0, out = 0;  // M, A, B, K
    const std::int64_t* source = nullptr;                         // (M,) site
    const std::int64_t* target = nullptr;                         // (M,) site
    const std::uint8_t* sends = nullptr;                          // (M,) takes part in others' sums
    const std::int64_t* site_crystal = nullptr;                   // (A,) not decreasing
    const std::int64_t* out_message = nullptr;                    // (A, K) M where none
    const std::int64_t* row_of_message = nullptr;  // (M,) place in cosine and is_triplet
    const float* cosine = nullptr;                 // (·, K)
    const std::uint8_t* is_triplet = nullptr;      // (·, K)
};

/// Messages by target and by source, the angles between them, and the parts of the work.
struct Plan {
    std::int64_t messages = 0, senders = 0, sites = 0, crystals = 0, orders = 0;
    std::vector<std::int32_t> row_message, row_source, row_target, row_crystal;  // (M,) by target
    std::vector<std::int32_t> sender_row, sender_message;                        // (S,) by source
    std::vector<std::int32_t> site_row, site_sender;                             // (A + 1,)
    std::vector<float> angle;               // per site: arriving rows × (senders · orders)
    std::vector<std::int64_t> angle_start;  // (A,)
    std::vector<std::int32_t> chunk_site;   // sites of each part of the work, whole crystals

    Plan(const MessageView& view, std::int64_t orders);
    std::int64_t chunks() const { return static_cast<std::int64_t>(chunk_site.size()) - 1; }
    std::int64_t saved_size(const NetworkShape& shape) const;
};

/// What a batch gives to the network, and where outputs and what the gradient needs go.
struct NetworkInputs {
    const float* const* weights = nullptr;  // SHARED + blocks · IN_BLOCK, as torch stores them
    const float* features = nullptr;        // (M, features), the radial basis first
    const float* angular = nullptr;         // (M, spherical · radial)
    const float* weight = nullptr;          // (M,)
    const float* of_source = nullptr;       // (A, width)
    const float* of_target = nullptr;       // (A, width)
    const float* noise = nullptr;           // (blocks, B, width)
};

/// (M, 2) outputs; `saved` is null or has `saved_size` numbers.
void network_forward(const Plan& plan, const NetworkShape& shape, const NetworkInputs& in,
                     float* out, float* saved, int threads);

/// Gradients of the weights, (A, width) twice and (blocks, B, width), from those of the outputs.
void network_backward(const Plan& plan, const NetworkShape& shape, const NetworkInputs& in,
                      const float* saved, const float* out_gradient, float* const* gradients,
                      float* of_source, float* of_target, float* noise, int threads);

/// The instructions used: "avx512", "avx2", "base", or "none" where there are no kernels. The
/// environment variable LANGEVIN_XTAL_INSTRUCTIONS asks for one of them.
const char* network_instructions();

}  // namespace langevin_xtal
