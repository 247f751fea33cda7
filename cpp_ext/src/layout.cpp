// The sum over triplets as rows; langevin_xtal/graph/batch.py says what they are.
#include <algorithm>
#include <cmath>

#include "lattice_search.hpp"
#include "multigraph.hpp"

namespace langevin_xtal {

Layout lay_out_triplets(const LayoutView& v, std::int64_t row) {
    Layout out;
    std::vector<std::int64_t> leaving(v.sites, 0), coming(v.sites, 0), first_row(v.sites, 0);
    for (std::int64_t e = 0; e < v.edges; ++e)
        if (v.sends[e]) ++leaving[v.source[e]];
    for (std::int64_t m = 0; m < v.messages; ++m) ++coming[v.target[v.first_edge[m]]];
    out.out = 1;
    for (std::int64_t a = 0; a < v.sites; ++a) {
        out.out = std::max(out.out, leaving[a]);
        first_row[a] = out.rows;
        out.rows += (coming[a] + row - 1) / row;
    }
    const std::int64_t width = out.out;
    out.out_edge.assign(v.sites * width, v.edges);
    out.out_message.assign(v.sites * width, v.messages);
    std::fill(leaving.begin(), leaving.end(), 0);
    for (std::int64_t e = 0; e < v.edges; ++e) {
        if (!v.sends[e]) continue;
        const std::int64_t a = v.source[e], place = a * width + leaving[a]++;
        out.out_edge[place] = e;
        out.out_message[place] = v.message[e];
    }
    out.row_site.resize(out.rows);
    for (std::int64_t a = 0; a < v.sites; ++a)
        for (std::int64_t r = 0; r < (coming[a] + row - 1) / row; ++r)
            out.row_site[first_row[a] + r] = a;
    out.row_edge.assign(out.rows * row, v.edges);
    out.row_of_message.resize(v.messages);
    out.cosine.assign(out.rows * row * width, 0.0);
    out.is_triplet.assign(out.rows * row * width, 0);
    std::fill(coming.begin(), coming.end(), 0);
    for (std::int64_t m = 0; m < v.messages; ++m) {
        const std::int64_t e = v.first_edge[m], a = v.target[e];
        const std::int64_t place = first_row[a] * row + coming[a]++;
        out.row_edge[place] = e;
        out.row_of_message[m] = place;
        const double* t = v.turned + 3 * e;
        for (std::int64_t k = 0; k < leaving[a]; ++k) {
            const std::int64_t f = out.out_edge[a * width + k];
            const double* d = v.vec + 3 * f;
            const double product = v.dist[e] * v.dist[f];
            const double dot = t[0] * d[0] + t[1] * d[1] + t[2] * d[2];
            out.is_triplet[place * width + k] =
                norm(t[0] - d[0], t[1] - d[1], t[2] - d[2]) > v.identical;
            if (product > v.no_length)
                out.cosine[place * width + k] = std::max(-1.0, std::min(1.0, dot / product));
        }
    }
    return out;
}

}  // namespace langevin_xtal
