// What is called from cpu_kernel.py. cpu_library.py compiles it with STORED, the dtype of the weight. Every operation rounds
// as torch's does.

#include "grid.hpp"
#include "leaf.hpp"

extern "C" {

void solve_leaf(const Leaf* leaf, int64_t threads) {
  over_tiles(leaf->rows, threads, [&](int64_t row, int64_t rows) { solve_rows(*leaf, row, rows); });
}

void update_leaf(const Leaf* leaf, int64_t threads) {
  over_tiles(leaf->rows, threads, [&](int64_t row, int64_t rows) { update_rows(*leaf, row, rows); });
}

void descend_leaf(const Leaf* leaf, int64_t threads) {
  over_tiles(leaf->rows, threads, [&](int64_t row, int64_t rows) { descend_rows(*leaf, row, rows); });
}

void fit_group(const Group* group, int64_t threads) {
  over_tiles(group->rows, threads, [&](int64_t row, int64_t rows) {
    std::vector<Lanes> weights(group->columns * PARTS);
    fit_rows(*group, row, rows, reinterpret_cast<float*>(weights.data()));
  });
}

}  // extern "C"
