// The kernels of the edge network for processors with AVX-512.
#include "edge_network_job.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx2,fma")
#endif
#define LX_VECTOR 16
#define LX_ROWS 8
#define LX_WIDE 3
#define LX_FMA(a, b, c) ((V)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))

namespace langevin_xtal {
#include "edge_network.inc"
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif

const langevin_xtal::NetworkKernels* langevin_xtal::avx512_kernels() {
    static const NetworkKernels kernels{"avx512", forward, backward};
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
    return runs ? &kernels : nullptr;
}
#else
const langevin_xtal::NetworkKernels* langevin_xtal::avx512_kernels() { return nullptr; }
#endif
