// solve_leaf and descend_leaf of leaf.py, of the same bits, and its `updated`.
#pragma once

#include "tile.hpp"

// As the arguments of leaf.py; null where there is none. Lines of `rows` values, one for each column.
struct Leaf {
  float* work;
  STORED* written;
  uint8_t* codes;
  const uint8_t* pruned;  // 0 or 1, as int32_t wherever it is computed with: selected by vectors
  const float* scale;  // the next column's line begins grid_stride later, 0 where all columns share one
  const float* zero;
  const float* square;  // S, or H
  const float* roots;
  const float* costs;
  double* losses;
  float* best;
  int64_t columns, rows, square_stride, grid_stride;
  int64_t stays, group;  // the pattern n:m; 0
  float top;
};

namespace {

constexpr int64_t MOST_OF_GROUP = 8;  // columns of an n:m group

struct alignas(64) Tile {
  float columns[MOST][TILE];  // how much those that are final have changed; the others once they are read
  float value[TILE], before[TILE], scale[TILE], zero[TILE], loss[TILE];
  int32_t zeros[MOST_OF_GROUP][TILE];
};

void read(const Leaf& leaf, int64_t column, int64_t row, int64_t rows, Tile& tile) {
  if (column + AHEAD < leaf.columns) {
    prefetch(leaf.work + (column + AHEAD) * leaf.rows + row);
    prefetch(leaf.written + (column + AHEAD) * leaf.rows + row);
  }
  load(leaf.work + column * leaf.rows + row, rows, 0.0f, tile.columns[column]);
}

// Brings a column that has been read up to date with the changes of some others, which have become final.
void update(const Leaf& leaf, int64_t column, int64_t first, int64_t last, Tile& tile) {
  Lanes sums[PARTS];  // in registers
  Lanes* own = reinterpret_cast<Lanes*>(tile.columns[column]);
  for (int64_t part = 0; part < PARTS; ++part) sums[part] = own[part];
  for (int64_t j = first; j < last; ++j) {
    const float reach = leaf.square[j * leaf.square_stride + column];
    const Lanes* change = reinterpret_cast<const Lanes*>(tile.columns[j]);
    for (int64_t part = 0; part < PARTS; ++part) sums[part] -= reach * change[part];
  }
  for (int64_t part = 0; part < PARTS; ++part) own[part] = sums[part];
}

// Chooses what to prune of the next group of columns, from what is best for all of them at once.
void choose(const Leaf& leaf, int64_t first, int64_t row, int64_t rows, Tile& tile) {
  float changes[MOST_OF_GROUP][TILE], scores[MOST_OF_GROUP][TILE];
  int32_t ranks[MOST_OF_GROUP][TILE];
  int32_t kept[MOST_OF_GROUP][TILE] = {};
  for (int64_t k = 0; k < leaf.group; ++k) {
    const int64_t column = first + k;
    float best[TILE];
    read(leaf, column, row, rows, tile);
    update(leaf, column, 0, first, tile);
    each([&](int64_t i) { best[i] = tile.columns[column][i]; });
    for (int64_t j = 0; j < k; ++j) {
      const float reach = leaf.square[(first + j) * leaf.square_stride + column];
      each([&](int64_t i) { best[i] -= reach * changes[j][i]; });
    }
    load(leaf.written + column * leaf.rows + row, rows, 0.0f, tile.before);
    const float root = leaf.roots[column];
    each([&](int64_t i) {
      changes[k][i] = best[i] - tile.before[i];
      scores[k][i] = std::abs(best[i]) * root;
    });
    if (leaf.pruned) {
      load(leaf.pruned + column * leaf.rows + row, rows, 0, kept[k]);
      each([&](int64_t i) { scores[k][i] = kept[k][i] ? -1.0f : scores[k][i]; });
    }
    each([&](int64_t i) { ranks[k][i] = 0; });
  }
  for (int64_t later = 0; later < leaf.group; ++later)
    for (int64_t earlier = 0; earlier < later; ++earlier)
      each([&](int64_t i) {
        const int32_t first_of_both = scores[earlier][i] <= scores[later][i];
        ranks[later][i] += first_of_both;
        ranks[earlier][i] += 1 - first_of_both;
      });
  const int32_t count = static_cast<int32_t>(leaf.group - leaf.stays);
  for (int64_t k = 0; k < leaf.group; ++k)
    each([&](int64_t i) { tile.zeros[k][i] = kept[k][i] | (ranks[k][i] < count); });
}

// Turns tile.value into the final values of a column, and writes them and their codes.
void finish(const Leaf& leaf, int64_t column, int64_t row, int64_t rows, Tile& tile) {
  const int64_t place = column * leaf.rows + row;
  float value[TILE];  // a copy that nothing else can reach, so that the loops below are of vectors
  each([&](int64_t i) { value[i] = tile.value[i]; });
  if (leaf.group) {
    const int32_t* zeros = tile.zeros[column % leaf.group];
    each([&](int64_t i) { value[i] = zeros[i] ? 0.0f : value[i]; });
  } else if (leaf.pruned) {
    int32_t zeros[TILE];
    load(leaf.pruned + place, rows, 0, zeros);
    each([&](int64_t i) { value[i] = zeros[i] ? 0.0f : value[i]; });
  }
  if (leaf.scale) {
    if (column == 0 || leaf.grid_stride) {
      load(leaf.scale + column * leaf.grid_stride + row, rows, 1.0f, tile.scale);
      load(leaf.zero + column * leaf.grid_stride + row, rows, 0.0f, tile.zero);
    }
    float steps[TILE];
    each([&](int64_t i) {
      const float step = rounded(value[i] / tile.scale[i]) + tile.zero[i];
      const float positive = step < 0.0f ? 0.0f : step;
      steps[i] = positive > leaf.top ? leaf.top : positive;
      value[i] = (steps[i] - tile.zero[i]) * tile.scale[i];
    });
    if (leaf.codes) store(steps, rows, leaf.codes + place);
  }
  each([&](int64_t i) { tile.value[i] = as_stored(value[i]); });
  store(tile.value, rows, leaf.written + place);
}

void solve_rows(const Leaf& leaf, int64_t row, int64_t rows) {
  Tile tile;
  each([&](int64_t i) { tile.loss[i] = 0.0f; });
  for (int64_t j = 0; j < leaf.columns; ++j) {
    int64_t begun = 0;
    if (leaf.group) {
      begun = j - j % leaf.group;
      if (begun == j) choose(leaf, j, row, rows, tile);
    } else {
      read(leaf, j, row, rows, tile);
    }
    update(leaf, j, begun, j, tile);
    float* own = tile.columns[j];
    load(leaf.written + j * leaf.rows + row, rows, 0.0f, tile.before);
    each([&](int64_t i) { tile.value[i] = own[i]; });
    finish(leaf, j, row, rows, tile);
    const float cost = leaf.costs[j];
    each([&](int64_t i) {
      const float error = tile.value[i] - own[i];
      tile.loss[i] += error * error * cost;
      own[i] = tile.value[i] - tile.before[i];
    });
    store(own, rows, leaf.work + j * leaf.rows + row);
  }
  for (int64_t i = 0; i < rows; ++i) leaf.losses[row + i] += tile.loss[i];
}

// What is best for each column once those before it are as they should be; changes nothing.
void update_rows(const Leaf& leaf, int64_t row, int64_t rows) {
  Tile tile;
  for (int64_t j = 0; j < leaf.columns; ++j) {
    read(leaf, j, row, rows, tile);
    update(leaf, j, 0, j, tile);
    float* own = tile.columns[j];
    store(own, rows, leaf.best + j * leaf.rows + row);
    load(leaf.written + j * leaf.rows + row, rows, 0.0f, tile.before);
    each([&](int64_t i) { own[i] -= tile.before[i]; });
  }
}

void descend_rows(const Leaf& leaf, int64_t row, int64_t rows) {
  Tile tile;
  for (int64_t j = 0; j < leaf.columns; ++j) {
    read(leaf, j, row, rows, tile);
    update(leaf, j, 0, j, tile);
    float* own = tile.columns[j];
    const float curve = leaf.square[j * leaf.square_stride + j];
    load(leaf.written + j * leaf.rows + row, rows, 0.0f, tile.before);
    each([&](int64_t i) { tile.value[i] = tile.before[i] + own[i] / curve; });
    finish(leaf, j, row, rows, tile);
    each([&](int64_t i) { own[i] = tile.value[i] - tile.before[i]; });
    store(own, rows, leaf.work + j * leaf.rows + row);
  }
}

}  // namespace
