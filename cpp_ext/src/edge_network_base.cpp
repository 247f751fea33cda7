// The kernels of the edge network with what every processor of the architecture has.
#include "edge_network_job.hpp"

#ifdef __GNUC__
#define LX_VECTOR 4
#define LX_ROWS 4
#define LX_WIDE 2
#define LX_FMA(a, b, c) ((a) * (b) + (c))

namespace langevin_xtal {
#include "edge_network.inc"
}

const langevin_xtal::NetworkKernels* langevin_xtal::base_kernels() {
    static const NetworkKernels kernels{"base", forward, backward};
    return &kernels;
}
#else
const langevin_xtal::NetworkKernels* langevin_xtal::base_kernels() { return nullptr; }
#endif
