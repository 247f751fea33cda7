// langevin_xtal.graph._multigraph: the C++ multigraph on numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <utility>
#include <vector>

#include "multigraph.hpp"

namespace py = pybind11;
namespace lx = langevin_xtal;

namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Integers = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

/// Hands a vector's memory to numpy without a copy.
template <class T>
py::array to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape, py::dtype dtype) {
    auto owner = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owner->data();
    const py::capsule keeper(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
    owner.release();
    return py::array(std::move(dtype), std::move(shape), data, keeper);
}
template <class T>
py::array to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    return to_numpy(std::move(values), std::move(shape), py::dtype::of<T>());
}

void require(bool holds, const char* what) {
    if (!holds) throw py::value_error(what);
}

/// Borrows a batch of crystals, or throws where the arrays do not fit each other.
lx::CrystalView crystal_view(const Doubles& lattice, const Doubles& frac,
                             const Integers& site_start, const Integers& rotations,
                             const Doubles& translations, const Integers& op_start,
                             const Integers& op_count, const Integers& orbit) {
    lx::CrystalView view;
    view.crystals = op_start.size();
    view.sites = orbit.size();
    const std::int64_t operations = translations.size() / 3;
    require(lattice.size() == 9 * view.crystals, "lattice must be (B, 3, 3)");
    require(frac.size() == 3 * view.sites, "frac must be (A, 3)");
    require(site_start.size() == view.crystals + 1, "site_start must be (B + 1,)");
    require(op_count.size() == view.crystals, "op_count must be (B,)");
    require(rotations.size() == 9 * operations, "rotations must be (O, 3, 3)");
    view.lattice = lattice.data();
    view.frac = frac.data();
    view.site_start = site_start.data();
    view.rotations = rotations.data();
    view.translations = translations.data();
    view.op_start = op_start.data();
    view.op_count = op_count.data();
    view.orbit = orbit.data();
    require(view.site_start[0] == 0 && view.site_start[view.crystals] == view.sites,
            "site_start must run from 0 to the number of sites");
    for (std::int64_t b = 0; b < view.crystals; ++b) {
        require(view.site_start[b] <= view.site_start[b + 1], "site_start must not decrease");
        require(view.op_start[b] >= 0 && view.op_count[b] > 0 &&
                    view.op_start[b] + view.op_count[b] <= operations,
                "every crystal needs operations that are in the table");
    }
    return view;
}

py::dict build(const Doubles& lattice, const Doubles& frac, const Integers& site_start,
               const Integers& rotations, const Doubles& translations, const Integers& op_start,
               const Integers& op_count, const Integers& orbit, double cutoff, std::int64_t k_min,
               std::int64_t k_max, bool all_pairs, double coincidence, double identical,
               double margin, double max_near, int threads) {
    const lx::CrystalView view = crystal_view(lattice, frac, site_start, rotations, translations,
                                              op_start, op_count, orbit);
    lx::Settings settings{cutoff,    k_min,  k_max,    all_pairs, coincidence,
                          identical, margin, max_near};
    lx::Multigraph graph;
    {
        py::gil_scoped_release release;
        graph = lx::build(view, settings, threads);
    }
    const auto edges = static_cast<py::ssize_t>(graph.edge_dist.size());
    const auto sites = static_cast<py::ssize_t>(view.sites);
    py::dict out;
    out["edge_index"] = to_numpy(std::move(graph.edge_index), {2, edges});
    out["edge_op"] = to_numpy(std::move(graph.edge_op), {edges});
    out["edge_shift"] = to_numpy(std::move(graph.edge_shift), {edges, 3});
    out["edge_vec"] = to_numpy(std::move(graph.edge_vec), {edges, 3});
    out["edge_dist"] = to_numpy(std::move(graph.edge_dist), {edges});
    const py::dtype boolean = py::dtype::of<bool>();
    out["edge_is_self_image"] =
        to_numpy(std::move(graph.edge_is_self_image), {edges}, boolean);
    out["edge_is_long_range"] =
        to_numpy(std::move(graph.edge_is_long_range), {edges}, boolean);
    out["edge_start"] = to_numpy(std::move(graph.edge_start), {sites + 1});
    out["site_reach"] = to_numpy(std::move(graph.site_reach), {sites});
    out["multiplicity"] = to_numpy(std::move(graph.multiplicity), {sites});
    return out;
}

using Booleans = py::array_t<bool, py::array::c_style | py::array::forcecast>;

py::array equivalent_edges(const Doubles& lattice, const Doubles& frac, const Integers& site_start,
                           const Integers& rotations, const Doubles& translations,
                           const Integers& op_start, const Integers& op_count,
                           const Integers& orbit, const Integers& edge_index,
                           const Doubles& edge_vec, const Doubles& edge_dist,
                           const Booleans& edge_is_long_range, const Integers& edge_start,
                           double close) {
    const lx::CrystalView view = crystal_view(lattice, frac, site_start, rotations, translations,
                                              op_start, op_count, orbit);
    lx::EdgeView edges;
    edges.edges = edge_dist.size();
    require(edge_index.size() == 2 * edges.edges, "edge_index must be (2, E)");
    require(edge_vec.size() == 3 * edges.edges, "edge_vec must be (E, 3)");
    require(edge_is_long_range.size() == edges.edges, "edge_is_long_range must be (E,)");
    require(edge_start.size() == view.sites + 1, "edge_start must be (A + 1,)");
    edges.target = edge_index.data() + edges.edges;
    edges.vec = edge_vec.data();
    edges.dist = edge_dist.data();
    edges.long_range = reinterpret_cast<const std::uint8_t*>(edge_is_long_range.data());
    edges.start = edge_start.data();
    require(edges.start[0] == 0 && edges.start[view.sites] == edges.edges,
            "edge_start must run from 0 to the number of edges");
    for (std::int64_t i = 0; i < view.sites; ++i)
        require(edges.start[i] <= edges.start[i + 1], "edge_start must not decrease");
    std::vector<std::int64_t> first;
    {
        py::gil_scoped_release release;
        first = lx::equivalent_edges(view, edges, close);
    }
    return to_numpy(std::move(first), {static_cast<py::ssize_t>(edges.edges)});
}

}  // namespace

PYBIND11_MODULE(_multigraph, m) {
    m.doc() = "The symmetry multigraph in C++; langevin_xtal.graph.cpp calls it.";
    // Translated in langevin_xtal.graph.cpp, where the message is written.
    static py::exception<lx::TooManyNear> too_many(m, "TooManyNearError");
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const lx::TooManyNear& e) {
            PyErr_SetObject(too_many.ptr(),
                            py::make_tuple(e.crystal, e.radius, e.near).ptr());
        }
    });
    m.def("build", &build, py::arg("lattice"), py::arg("frac"), py::arg("site_start"),
          py::arg("rotations"), py::arg("translations"), py::arg("op_start"),
          py::arg("op_count"), py::arg("orbit"), py::kw_only(), py::arg("cutoff"),
          py::arg("k_min"), py::arg("k_max"), py::arg("all_pairs"), py::arg("coincidence"),
          py::arg("identical"), py::arg("margin"), py::arg("max_near"), py::arg("threads"),
          "Edges of a batch of crystals as a dict of arrays; the GIL is released.");
    m.def("equivalent_edges", &equivalent_edges, py::arg("lattice"), py::arg("frac"),
          py::arg("site_start"), py::arg("rotations"), py::arg("translations"),
          py::arg("op_start"), py::arg("op_count"), py::arg("orbit"), py::kw_only(),
          py::arg("edge_index"), py::arg("edge_vec"), py::arg("edge_dist"),
          py::arg("edge_is_long_range"), py::arg("edge_start"), py::arg("close"),
          "The first edge equivalent to each edge, (E,); the GIL is released.");
}
