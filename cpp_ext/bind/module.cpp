// langevin_xtal.graph._multigraph: the C++ multigraph on numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "edge_network.hpp"
#include "multigraph.hpp"
#include "sites.hpp"

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
    const lx::CrystalView view =
        crystal_view(lattice, frac, site_start, rotations, translations, op_start, op_count, orbit);
    lx::Settings settings{cutoff,      k_min,     k_max,  all_pairs,
                          coincidence, identical, margin, max_near};
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
    out["edge_is_self_image"] = to_numpy(std::move(graph.edge_is_self_image), {edges}, boolean);
    out["edge_is_long_range"] = to_numpy(std::move(graph.edge_is_long_range), {edges}, boolean);
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
    const lx::CrystalView view =
        crystal_view(lattice, frac, site_start, rotations, translations, op_start, op_count, orbit);
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

py::tuple distinct_images(const Doubles& lattice, const Doubles& frac, const Integers& site_start,
                          const Integers& rotations, const Doubles& translations,
                          const Integers& op_start, const Integers& op_count, const Integers& orbit,
                          double identical) {
    const lx::CrystalView view =
        crystal_view(lattice, frac, site_start, rotations, translations, op_start, op_count, orbit);
    std::vector<std::int64_t> site, op;
    {
        py::gil_scoped_release release;
        lx::distinct_images(view, identical, site, op);
    }
    const auto count = static_cast<py::ssize_t>(site.size());
    return py::make_tuple(to_numpy(std::move(site), {count}), to_numpy(std::move(op), {count}));
}

/// A table of a matrix for every operation, or throws.
const double* operation_matrices(const Doubles& table, const Doubles& translations) {
    require(table.size() == 3 * translations.size(), "tables of operations must be (O, 3, 3)");
    return table.data();
}

py::dict snap_sites(const Doubles& lattice, const Doubles& frac, const Integers& site_start,
                    const Integers& rotations, const Doubles& translations,
                    const Integers& op_start, const Integers& op_count, const Integers& orbit,
                    const Doubles& inverse, const Doubles& fixed, const Doubles& radius,
                    double identical) {
    const lx::CrystalView view =
        crystal_view(lattice, frac, site_start, rotations, translations, op_start, op_count, orbit);
    const lx::OperationView operations{operation_matrices(inverse, translations),
                                       operation_matrices(fixed, translations)};
    require(radius.size() == view.sites || radius.size() == 0, "radius must be (A,) or empty");
    lx::SnappedSites found;
    {
        py::gil_scoped_release release;
        found =
            lx::snap_sites(view, operations, radius.size() ? radius.data() : nullptr, identical);
    }
    const auto sites = static_cast<py::ssize_t>(view.sites);
    py::dict out;
    out["frac"] = to_numpy(std::move(found.frac), {sites, 3});
    out["displacement"] = to_numpy(std::move(found.displacement), {sites, 3});
    out["projector"] = to_numpy(std::move(found.projector), {sites, 3, 3});
    out["stabiliser_order"] = to_numpy(std::move(found.stabiliser_order), {sites});
    return out;
}

py::array orbit_noise(const Doubles& lattice, const Doubles& frac, const Integers& site_start,
                      const Integers& rotations, const Doubles& translations,
                      const Integers& op_start, const Integers& op_count, const Integers& orbit,
                      const Doubles& noised, const Doubles& sigma, const Booleans& confined,
                      const Doubles& projector, std::int64_t axis_images, std::int64_t box_images,
                      double identical, double unreached) {
    const lx::CrystalView view =
        crystal_view(lattice, frac, site_start, rotations, translations, op_start, op_count, orbit);
    require(noised.size() == 3 * view.sites, "noised must be (A, 3)");
    require(sigma.size() == view.crystals, "sigma must be (B,)");
    require(confined.size() == view.sites, "confined must be (A,)");
    require(projector.size() == 9 * view.sites, "projector must be (A, 3, 3)");
    const lx::NoisedView given{
        noised.data(),    sigma.data(), reinterpret_cast<const std::uint8_t*>(confined.data()),
        projector.data(), axis_images,  box_images,
        identical,        unreached};
    std::vector<double> found;
    {
        py::gil_scoped_release release;
        found = lx::orbit_noise(view, given);
    }
    return to_numpy(std::move(found), {static_cast<py::ssize_t>(view.sites), 3});
}

py::dict lay_out_triplets(const Integers& source, const Integers& target, const Doubles& vec,
                          const Doubles& turned, const Doubles& dist, const Booleans& sends,
                          const Integers& first_edge, const Integers& message, std::int64_t sites,
                          std::int64_t row, double identical, double no_length) {
    lx::LayoutView view;
    view.edges = source.size();
    view.messages = first_edge.size();
    view.sites = sites;
    require(target.size() == view.edges, "target must be (E,)");
    require(vec.size() == 3 * view.edges, "vec must be (E, 3)");
    require(turned.size() == 3 * view.edges, "turned must be (E, 3)");
    require(dist.size() == view.edges, "dist must be (E,)");
    require(sends.size() == view.edges, "sends must be (E,)");
    require(message.size() == view.edges, "message must be (E,)");
    require(sites >= 0 && row >= 1, "there are sites, and messages in a row");
    view.source = source.data();
    view.target = target.data();
    view.vec = vec.data();
    view.turned = turned.data();
    view.dist = dist.data();
    view.sends = reinterpret_cast<const std::uint8_t*>(sends.data());
    view.first_edge = first_edge.data();
    view.message = message.data();
    view.identical = identical;
    view.no_length = no_length;
    for (std::int64_t e = 0; e < view.edges; ++e)
        require(view.source[e] >= 0 && view.source[e] < sites && view.target[e] >= 0 &&
                    view.target[e] < sites && view.message[e] >= 0 &&
                    view.message[e] < view.messages,
                "edges join sites and carry messages");
    for (std::int64_t m = 0; m < view.messages; ++m)
        require(view.first_edge[m] >= 0 && view.first_edge[m] < view.edges,
                "messages are carried by edges");
    lx::Layout layout;
    {
        py::gil_scoped_release release;
        layout = lx::lay_out_triplets(view, row);
    }
    const auto out = static_cast<py::ssize_t>(layout.out);
    const auto rows = static_cast<py::ssize_t>(layout.rows);
    const auto width = static_cast<py::ssize_t>(row);
    const auto of_sites = static_cast<py::ssize_t>(sites);
    py::dict found;
    found["out_edge"] = to_numpy(std::move(layout.out_edge), {of_sites, out});
    found["out_message"] = to_numpy(std::move(layout.out_message), {of_sites, out});
    found["row_site"] = to_numpy(std::move(layout.row_site), {rows});
    found["row_edge"] = to_numpy(std::move(layout.row_edge), {rows, width});
    found["row_of_message"] =
        to_numpy(std::move(layout.row_of_message), {static_cast<py::ssize_t>(view.messages)});
    found["cosine"] = to_numpy(std::move(layout.cosine), {rows, width, out});
    found["is_triplet"] =
        to_numpy(std::move(layout.is_triplet), {rows, width, out}, py::dtype::of<bool>());
    return found;
}

using Singles = py::array_t<float, py::array::c_style>;
using Shape = std::vector<std::int64_t>;

lx::NetworkShape network_shape(const Shape& s) {
    require(s.size() == 6, "a network has six sizes");
    for (const std::int64_t size : s) require(size >= 0 && size <= 4096, "a size is out of range");
    require(s[0] > 0 && s[1] > 0 && s[0] % 16 == 0 && s[1] % 16 == 0,
            "widths must be multiples of 16");
    require(s[5] >= s[3], "features begin with the radial basis");
    return {s[0], s[1], s[2], s[3], s[4], s[5]};
}

std::unique_ptr<lx::Plan> make_plan(const Integers& source, const Integers& target,
                                    const Booleans& sends, const Integers& site_crystal,
                                    const Integers& out_message, const Integers& row_of_message,
                                    const Singles& cosine, const Booleans& is_triplet,
                                    std::int64_t crystals, std::int64_t orders) {
    lx::MessageView view;
    view.messages = source.size();
    view.sites = site_crystal.size();
    view.crystals = crystals;
    require(out_message.ndim() == 2 && out_message.shape(0) == view.sites,
            "out_message must be (A, K)");
    view.out = out_message.shape(1);
    require(target.size() == view.messages, "target must be (M,)");
    require(sends.size() == view.messages, "sends must be (M,)");
    require(row_of_message.size() == view.messages, "row_of_message must be (M,)");
    require(is_triplet.size() == cosine.size(), "is_triplet must be like cosine");
    require(orders >= 1 && orders <= 64, "orders must be 1 to 64");
    view.source = source.data();
    view.target = target.data();
    view.sends = reinterpret_cast<const std::uint8_t*>(sends.data());
    view.site_crystal = site_crystal.data();
    view.out_message = out_message.data();
    view.row_of_message = row_of_message.data();
    view.cosine = cosine.data();
    view.is_triplet = reinterpret_cast<const std::uint8_t*>(is_triplet.data());
    for (std::int64_t a = 0; a < view.sites; ++a)
        require(view.site_crystal[a] >= (a ? view.site_crystal[a - 1] : 0) &&
                    view.site_crystal[a] < crystals,
                "site_crystal must not decrease");
    const std::int64_t places = view.out ? cosine.size() / view.out : 0;
    for (std::int64_t m = 0; m < view.messages; ++m) {
        require(view.source[m] >= 0 && view.source[m] < view.sites && view.target[m] >= 0 &&
                    view.target[m] < view.sites &&
                    view.site_crystal[view.source[m]] == view.site_crystal[view.target[m]],
                "messages go from site to site of a crystal");
        require(view.row_of_message[m] >= 0 && view.row_of_message[m] < places,
                "row_of_message is out of range");
    }
    for (std::int64_t a = 0; a < view.sites; ++a)
        for (std::int64_t k = 0; k < view.out; ++k) {
            const std::int64_t m = view.out_message[a * view.out + k];
            require(m >= 0 && m <= view.messages, "out_message is out of range");
            require(m == view.messages || (view.sends[m] && view.source[m] == a),
                    "out_message lists messages that the site sends");
        }
    const py::gil_scoped_release release;
    return std::make_unique<lx::Plan>(view, orders);
}

/// Borrows what goes into a network, or throws where the arrays do not fit the plan.
class Inputs {
 public:
    lx::NetworkShape shape;
    lx::NetworkInputs in;

    Inputs(const lx::Plan& plan, const Shape& sizes, const std::vector<Singles>& weights,
           const Singles& features, const Singles& angular, const Singles& weight,
           const Singles& of_source, const Singles& of_target, const Singles& noise)
        : shape(network_shape(sizes)), pointers_(weights.size()) {
        const auto expected = lx::weight_sizes(shape);
        require(weights.size() == expected.size(), "weights must be those of the network");
        for (std::size_t k = 0; k < weights.size(); ++k) {
            require(weights[k].size() == expected[k].rows * expected[k].columns,
                    "a weight does not fit the network");
            pointers_[k] = weights[k].data();
        }
        require(plan.orders == shape.spherical, "the plan has another number of orders");
        require(features.size() == plan.messages * shape.features, "features must be (M, F)");
        require(angular.size() == plan.messages * shape.spherical * shape.radial,
                "angular must be (M, L, N)");
        require(weight.size() == plan.messages, "weight must be (M,)");
        require(of_source.size() == plan.sites * shape.width, "of_source must be (A, width)");
        require(of_target.size() == plan.sites * shape.width, "of_target must be (A, width)");
        require(noise.size() == shape.blocks * plan.crystals * shape.width,
                "noise must be (blocks, B, width)");
        in.weights = pointers_.data();
        in.features = features.data(), in.angular = angular.data(), in.weight = weight.data();
        in.of_source = of_source.data(), in.of_target = of_target.data(), in.noise = noise.data();
    }

 private:
    std::vector<const float*> pointers_;
};

void forward(const lx::Plan& plan, const Shape& sizes, const std::vector<Singles>& weights,
             const Singles& features, const Singles& angular, const Singles& weight,
             const Singles& of_source, const Singles& of_target, const Singles& noise, Singles out,
             Singles saved, int threads) {
    const Inputs given(plan, sizes, weights, features, angular, weight, of_source, of_target,
                       noise);
    require(out.size() == 2 * plan.messages, "out must be (M, 2)");
    const bool keep = saved.size() > 0;
    require(!keep || saved.size() == plan.saved_size(given.shape), "saved must be as planned");
    float *to = out.mutable_data(), *rest = keep ? saved.mutable_data() : nullptr;
    const py::gil_scoped_release release;
    lx::network_forward(plan, given.shape, given.in, to, rest, threads);
}

void backward(const lx::Plan& plan, const Shape& sizes, const std::vector<Singles>& weights,
              const Singles& features, const Singles& angular, const Singles& weight,
              const Singles& of_source, const Singles& of_target, const Singles& noise,
              const Singles& saved, const Singles& out_gradient, std::vector<Singles> gradients,
              int threads) {
    const Inputs given(plan, sizes, weights, features, angular, weight, of_source, of_target,
                       noise);
    require(saved.size() == plan.saved_size(given.shape), "saved must be as planned");
    require(out_gradient.size() == 2 * plan.messages, "out_gradient must be (M, 2)");
    require(gradients.size() == weights.size() + 3, "gradients must be those of all inputs");
    std::vector<float*> to;
    for (Singles& g : gradients) to.push_back(g.mutable_data());
    const Singles* inputs[] = {&of_source, &of_target, &noise};
    for (std::size_t k = 0; k < gradients.size(); ++k)
        require(gradients[k].size() ==
                    (k < weights.size() ? weights[k] : *inputs[k - weights.size()]).size(),
                "a gradient does not fit its input");
    float** rest = to.data() + weights.size();
    const py::gil_scoped_release release;
    lx::network_backward(plan, given.shape, given.in, saved.data(), out_gradient.data(), to.data(),
                         rest[0], rest[1], rest[2], threads);
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
            PyErr_SetObject(too_many.ptr(), py::make_tuple(e.crystal, e.radius, e.near).ptr());
        }
    });
    m.def("build", &build, py::arg("lattice"), py::arg("frac"), py::arg("site_start"),
          py::arg("rotations"), py::arg("translations"), py::arg("op_start"), py::arg("op_count"),
          py::arg("orbit"), py::kw_only(), py::arg("cutoff"), py::arg("k_min"), py::arg("k_max"),
          py::arg("all_pairs"), py::arg("coincidence"), py::arg("identical"), py::arg("margin"),
          py::arg("max_near"), py::arg("threads"),
          "Edges of a batch of crystals as a dict of arrays; the GIL is released.");
    m.def("equivalent_edges", &equivalent_edges, py::arg("lattice"), py::arg("frac"),
          py::arg("site_start"), py::arg("rotations"), py::arg("translations"), py::arg("op_start"),
          py::arg("op_count"), py::arg("orbit"), py::kw_only(), py::arg("edge_index"),
          py::arg("edge_vec"), py::arg("edge_dist"), py::arg("edge_is_long_range"),
          py::arg("edge_start"), py::arg("close"),
          "The first edge equivalent to each edge, (E,); the GIL is released.");
    m.def("distinct_images", &distinct_images, py::arg("lattice"), py::arg("frac"),
          py::arg("site_start"), py::arg("rotations"), py::arg("translations"), py::arg("op_start"),
          py::arg("op_count"), py::arg("orbit"), py::kw_only(), py::arg("identical"),
          "Site and operation of every distinct image, (P,) each.");
    m.def("snap_sites", &snap_sites, py::arg("lattice"), py::arg("frac"), py::arg("site_start"),
          py::arg("rotations"), py::arg("translations"), py::arg("op_start"), py::arg("op_count"),
          py::arg("orbit"), py::kw_only(), py::arg("inverse"), py::arg("fixed"), py::arg("radius"),
          py::arg("identical"),
          "Sites on their special positions, as a dict of arrays; the GIL is released.");
    m.def("orbit_noise", &orbit_noise, py::arg("lattice"), py::arg("frac"), py::arg("site_start"),
          py::arg("rotations"), py::arg("translations"), py::arg("op_start"), py::arg("op_count"),
          py::arg("orbit"), py::kw_only(), py::arg("noised"), py::arg("sigma"), py::arg("confined"),
          py::arg("projector"), py::arg("axis_images"), py::arg("box_images"), py::arg("identical"),
          py::arg("unreached"),
          "Noise of every site, averaged over equivalent images, (A, 3); the GIL is released.");
    m.def("lay_out_triplets", &lay_out_triplets, py::arg("source"), py::arg("target"),
          py::arg("vec"), py::arg("turned"), py::arg("dist"), py::arg("sends"),
          py::arg("first_edge"), py::arg("message"), py::kw_only(), py::arg("sites"),
          py::arg("row"), py::arg("identical"), py::arg("no_length"),
          "Triplets in rows, as a dict of arrays; the GIL is released.");
    py::class_<lx::Plan>(m, "Plan", "Messages of a batch, ordered for the kernels.")
        .def(py::init(&make_plan), py::arg("source"), py::arg("target"), py::arg("sends"),
             py::arg("site_crystal"), py::arg("out_message"), py::arg("row_of_message"),
             py::arg("cosine"), py::arg("is_triplet"), py::kw_only(), py::arg("crystals"),
             py::arg("orders"))
        .def("saved_size", [](const lx::Plan& plan, const Shape& sizes) {
            return plan.saved_size(network_shape(sizes));
        });
    m.def("network_forward", &forward, "Fills out and, unless it is empty, saved.");
    m.def("network_backward", &backward, "Fills the gradients of the weights and inputs.");
    m.def("network_instructions", &lx::network_instructions,
          "The instruction set of the network's kernels.");
}
