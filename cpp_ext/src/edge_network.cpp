#include "edge_network.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "edge_network_job.hpp"
#include "threads.hpp"

namespace langevin_xtal {

namespace {

/// Messages of a part of the work: enough that reading the weights again costs little.
constexpr std::int64_t PART = 384;
/// Messages for which gradients are summed apart, so that threads can share a batch.
constexpr std::int64_t LANE = 1024;
constexpr std::int64_t MOST_LANES = 16;

/// Null where the compiler has no vectors.
const NetworkKernels* kernels() {
    static const NetworkKernels* const found = [] {
        // the best there are, or those asked for where they can run
        const char* asked = std::getenv("LANGEVIN_XTAL_INSTRUCTIONS");
        const NetworkKernels* const all[] = {avx512_kernels(), avx2_kernels(), base_kernels()};
        for (const auto* k : all)
            if (k && (!asked || std::strcmp(asked, k->name) == 0)) return k;
        for (const auto* k : all)
            if (k) return k;
        return static_cast<const NetworkKernels*>(nullptr);
    }();
    return found;
}

/// Items of a counting sort by key, and where each key's begin.
void sort_by(const std::vector<std::int32_t>& items, const std::int64_t* key, std::int64_t keys,
             std::vector<std::int32_t>& sorted, std::vector<std::int32_t>& start) {
    start.assign(keys + 1, 0);
    for (const std::int32_t m : items) ++start[key[m] + 1];
    for (std::int64_t k = 0; k < keys; ++k) start[k + 1] += start[k];
    sorted.resize(items.size());
    std::vector<std::int32_t> next(start.begin(), start.end() - 1);
    for (const std::int32_t m : items) sorted[next[key[m]]++] = m;
}

bool is_turned(std::int64_t index) {
    if (index < SHARED) return index != EMBED_BIAS && index != OUT_GATE_BIAS && index != OUT_BIAS;
    switch ((index - SHARED) % IN_BLOCK) {
        case SENT:
        case GATE:
        case DOWN:
        case UP:
        case OWN:
        case BEFORE_1:
        case BEFORE_2:
        case SKIP:
        case AFTER_1:
        case AFTER_2:
            return true;
        default:
            return false;
    }
}

/// Gradients that the kernels keep as input rows × output columns.
bool gradient_is_turned(std::int64_t index) {
    if (index < SHARED) return index == FROM_EDGE || index == OUT_GATE;
    return (index - SHARED) % IN_BLOCK == GATE;
}

/// (rows, columns) to (columns, width) with zeros behind.
void transpose(const float* from, std::int64_t rows, std::int64_t columns, std::int64_t width,
               float* to) {
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c) to[c * width + r] = from[r * columns + c];
}

/// Everything of a call that is gathered before the kernels run.
class Call {
 public:
    NetworkJob job{};

    Call(const Plan& plan, const NetworkShape& s, const NetworkInputs& in) : plan_(plan) {
        const auto sizes = weight_sizes(s);
        turned_.resize(sizes.size());
        pointers_.resize(sizes.size(), nullptr);
        for (std::size_t k = 0; k < sizes.size(); ++k) {
            if (!is_turned(static_cast<std::int64_t>(k))) continue;
            const std::int64_t width = k == LAST ? 16 : sizes[k].rows;
            turned_[k].assign(sizes[k].columns * width, 0.0f);
            transpose(in.weights[k], sizes[k].rows, sizes[k].columns, width, turned_[k].data());
            pointers_[k] = turned_[k].data();
        }
        gather(in.features, s.features, s.features, plan.row_message, features_);
        gather(in.features, s.features, s.radial, plan.sender_message, radial_);
        gather(in.angular, s.spherical * s.radial, s.spherical * s.radial, plan.sender_message,
               angular_);
        gather(in.weight, 1, 1, plan.row_message, weight_);
        job.shape = s;
        job.messages = plan.messages, job.senders = plan.senders, job.crystals = plan.crystals;
        job.row_message = plan.row_message.data(), job.row_source = plan.row_source.data();
        job.row_target = plan.row_target.data(), job.row_crystal = plan.row_crystal.data();
        job.sender_row = plan.sender_row.data();
        job.site_row = plan.site_row.data(), job.site_sender = plan.site_sender.data();
        job.chunk_site = plan.chunk_site.data();
        job.angle = plan.angle.data(), job.angle_start = plan.angle_start.data();
        job.weights = in.weights, job.turned = pointers_.data();
        job.features = features_.data(), job.radial = radial_.data();
        job.angular = angular_.data(), job.weight = weight_.data();
        job.of_source = in.of_source, job.of_target = in.of_target, job.noise = in.noise;
        for (std::int64_t c = 0; c < plan.chunks(); ++c) {
            const auto a = plan.chunk_site[c], b = plan.chunk_site[c + 1];
            rows_ = std::max<std::int64_t>(rows_, plan.site_row[b] - plan.site_row[a]);
            senders_ = std::max<std::int64_t>(senders_, plan.site_sender[b] - plan.site_sender[a]);
        }
    }

    std::vector<float> scratch() const {
        return std::vector<float>(scratch_size(job.shape, rows_, senders_));
    }

 private:
    const Plan& plan_;
    std::vector<std::vector<float>> turned_;
    std::vector<const float*> pointers_;
    std::vector<float> features_, radial_, angular_, weight_;
    std::int64_t rows_ = 0, senders_ = 0;

    static void gather(const float* from, std::int64_t step, std::int64_t count,
                       const std::vector<std::int32_t>& place, std::vector<float>& to) {
        to.resize(place.size() * count);
        for (std::size_t k = 0; k < place.size(); ++k)
            std::copy_n(from + step * place[k], count, to.data() + k * count);
    }
};

/// Calls work(item, scratch) for all items, on threads that take the next one.
template <class Work>
void share(const Call& call, std::int64_t items, int threads, Work&& work) {
    threads =
        static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(items, 1)));
    std::atomic<std::int64_t> next{0};
    run_threads(threads, [&](int) {
        std::vector<float> scratch = call.scratch();
        for (std::int64_t k = next++; k < items; k = next++) work(k, scratch.data());
    });
}

}  // namespace

std::vector<WeightSize> weight_sizes(const NetworkShape& s) {
    const std::int64_t w = s.width, c = s.triplet_width;
    std::vector<WeightSize> sizes = {{w, s.features}, {w, w}, {w, 1}, {w, s.features},
                                     {w, 1},          {w, w}, {w, 1}, {2, w}};
    for (std::int64_t b = 0; b < s.blocks; ++b)
        sizes.insert(sizes.end(), {{w, w},
                                   {w, 1},
                                   {w, s.radial},
                                   {s.spherical * s.radial, c},
                                   {c, w},
                                   {w, c},
                                   {w, w},
                                   {w, 1},
                                   {w, w},
                                   {w, 1},
                                   {w, w},
                                   {w, 1},
                                   {w, w},
                                   {w, 1},
                                   {w, w},
                                   {w, 1},
                                   {w, w},
                                   {w, 1}});
    return sizes;
}

Plan::Plan(const MessageView& v, std::int64_t orders)
    : messages(v.messages), sites(v.sites), crystals(v.crystals), orders(orders) {
    std::vector<std::int32_t> every(messages), sending;
    for (std::int64_t m = 0; m < messages; ++m) {
        every[m] = static_cast<std::int32_t>(m);
        if (v.sends[m]) sending.push_back(static_cast<std::int32_t>(m));
    }
    senders = static_cast<std::int64_t>(sending.size());
    sort_by(every, v.target, sites, row_message, site_row);
    sort_by(sending, v.source, sites, sender_message, site_sender);
    std::vector<std::int32_t> row_of(messages), sender_of(messages, -1);
    row_source.resize(messages), row_target.resize(messages), row_crystal.resize(messages);
    for (std::int64_t r = 0; r < messages; ++r) {
        const std::int32_t m = row_message[r];
        row_of[m] = static_cast<std::int32_t>(r);
        row_source[r] = static_cast<std::int32_t>(v.source[m]);
        row_target[r] = static_cast<std::int32_t>(v.target[m]);
        row_crystal[r] = static_cast<std::int32_t>(v.site_crystal[v.target[m]]);
    }
    sender_row.resize(senders);
    for (std::int64_t s = 0; s < senders; ++s) {
        sender_of[sender_message[s]] = static_cast<std::int32_t>(s);
        sender_row[s] = row_of[sender_message[s]];
    }

    angle_start.resize(sites);
    std::int64_t total = 0;
    for (std::int64_t a = 0; a < sites; ++a) {
        angle_start[a] = total;
        const std::int64_t rows = site_row[a + 1] - site_row[a];
        total += rows * (site_sender[a + 1] - site_sender[a]) * orders;
    }
    angle.assign(total, 0.0f);
    std::vector<float> legendre(std::max<std::int64_t>(orders, 2));
    for (std::int64_t a = 0; a < sites; ++a) {
        const std::int64_t depth = (site_sender[a + 1] - site_sender[a]) * orders;
        const std::int64_t* out = v.out_message + a * v.out;
        for (std::int64_t r = site_row[a]; r < site_row[a + 1]; ++r) {
            float* to = angle.data() + angle_start[a] + (r - site_row[a]) * depth;
            const std::int64_t place = v.row_of_message[row_message[r]] * v.out;
            for (std::int64_t k = 0; k < v.out; ++k) {
                if (out[k] >= messages || !v.is_triplet[place + k]) continue;
                const float x = v.cosine[place + k];
                legendre[0] = 1.0f, legendre[1] = x;
                for (std::int64_t l = 1; l + 1 < orders; ++l)
                    legendre[l + 1] = (static_cast<float>(2 * l + 1) * x * legendre[l] -
                                       static_cast<float>(l) * legendre[l - 1]) /
                                      static_cast<float>(l + 1);
                float* own = to + (sender_of[out[k]] - site_sender[a]) * orders;
                for (std::int64_t l = 0; l < orders; ++l) own[l] += legendre[l];
            }
        }
    }

    chunk_site = {0};
    for (std::int64_t a = 1; a <= sites; ++a) {
        const bool whole = a == sites || v.site_crystal[a] != v.site_crystal[a - 1];
        if (whole && (a == sites || site_row[a] - site_row[chunk_site.back()] >= PART))
            chunk_site.push_back(static_cast<std::int32_t>(a));
    }
}

std::int64_t Plan::saved_size(const NetworkShape& s) const {
    const std::int64_t rows = messages * s.width;
    return 4 * rows + s.blocks * (8 * rows + messages * s.triplet_width +
                                  senders * (s.width + s.triplet_width));
}

void network_forward(const Plan& plan, const NetworkShape& shape, const NetworkInputs& in,
                     float* out, float* saved, int threads) {
    Call call(plan, shape, in);
    call.job.out = out;
    call.job.saved = saved;
    share(call, plan.chunks(), threads, [&](std::int64_t chunk, float* scratch) {
        kernels()->forward(call.job, chunk, scratch);
    });
}

void network_backward(const Plan& plan, const NetworkShape& shape, const NetworkInputs& in,
                      const float* saved, const float* out_gradient, float* const* gradients,
                      float* of_source, float* of_target, float* noise, int threads) {
    Call call(plan, shape, in);
    NetworkJob& job = call.job;
    job.saved = const_cast<float*>(saved);  // only read by the backward pass
    job.out_gradient = out_gradient;
    std::fill_n(of_source, plan.sites * shape.width, 0.0f);
    std::fill_n(of_target, plan.sites * shape.width, 0.0f);
    std::fill_n(noise, shape.blocks * plan.crystals * shape.width, 0.0f);
    job.source_gradient = of_source, job.target_gradient = of_target, job.noise_gradient = noise;

    // as many sums as the batch asks for, never as there are threads: rounding stays the same
    const auto sizes = weight_sizes(shape);
    const std::int64_t lanes =
        std::clamp<std::int64_t>(std::min(plan.messages / LANE, plan.chunks()), 1, MOST_LANES);
    std::int64_t total = 0;
    for (const WeightSize& size : sizes) total += size.rows * size.columns;
    std::vector<float> sums(lanes * total, 0.0f);
    share(call, lanes, threads, [&](std::int64_t lane, float* scratch) {
        std::vector<float*> own(sizes.size());
        float* p = sums.data() + lane * total;
        for (std::size_t k = 0; k < sizes.size(); ++k) {
            own[k] = p;
            p += sizes[k].rows * sizes[k].columns;
        }
        for (std::int64_t c = lane; c < plan.chunks(); c += lanes)
            kernels()->backward(job, c, scratch, own.data());
    });
    for (std::int64_t lane = 1; lane < lanes; ++lane)
        for (std::int64_t k = 0; k < total; ++k) sums[k] += sums[lane * total + k];
    const float* p = sums.data();
    for (std::size_t k = 0; k < sizes.size(); ++k) {
        const auto [rows, columns] = sizes[k];
        if (gradient_is_turned(static_cast<std::int64_t>(k)))
            transpose(p, columns, rows, columns, gradients[k]);
        else
            std::copy_n(p, rows * columns, gradients[k]);
        p += rows * columns;
    }
}

const char* network_instructions() { return kernels() ? kernels()->name : "none"; }

}  // namespace langevin_xtal
