// The kernels of the edge network for processors with AVX2 and fused multiply-add.
#include "edge_network_job.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LX_VECTOR 8
#define LX_ROWS 6
#define LX_WIDE 2
#define LX_FMA(a, b, c) ((V)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))

namespace langevin_xtal {
#include "edge_network.inc"
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif

const langevin_xtal::NetworkKernels* langevin_xtal::avx2_kernels() {
    static const NetworkKernels kernels{"avx2", forward, backward};
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : nullptr;
}
#else
const langevin_xtal::NetworkKernels* langevin_xtal::avx2_kernels() { return nullptr; }
#endif
